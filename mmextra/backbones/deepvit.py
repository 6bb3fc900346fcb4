"""DeepViT: Towards Deeper Vision Transformer. arXiv 2103.11886, 2021.

The attention maps of the later layers of a deep vision transformer become nearly the same. Re-attention mixes the
heads' maps with a learned matrix and normalises the result, which keeps them apart at almost no cost.

Registered here: ``ReAttention``, ``DeepViT`` and ``AttentionSimilarityHook``. The optional cosine regulariser of the
32-layer recipe is ``AttnCosRegHook`` in :mod:`mmextra.backbones.refiner`.
"""

from typing import List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import BaseModule, is_model_wrapper
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor, nn

from mmextra.backbones.plain_vit import (
    STEM_KEYS,
    PlainViT,
    ScaledResidualBlock,
    deit_keys,
    mixed_statistics,
    norm_affine,
)
from mmextra.engine.checkpoint import StateDict, register_layout
from mmextra.registry import HOOKS, MODELS


@MODELS.register_module()
class ReAttention(BaseModule):
    r"""Multi-head self-attention whose maps are mixed across the heads and normalised (section 4.2).

    With A the softmax maps of the h heads,

    .. math:: A' = r \cdot \mathrm{BN}(\Theta A + \beta), \qquad y = \mathrm{proj}(A' v)

    where :math:`\Theta` (h, h) and :math:`\beta` (h) act on the head axis, and the batch norm takes its statistics over
    batch, queries and keys. The rows of A' do not sum to one and may hold negative values.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads h.
        qkv_bias (bool): Whether queries, keys and values have a bias. Defaults to True.
        qk_scale (float, optional): Scale of the logits. Defaults to None, ``(C / h) ** -0.5``.
        attn_drop (float): Dropout of A. Defaults to 0.
        proj_drop (float): Dropout of the output. Defaults to 0.
        apply_transform (bool): Without it this is plain attention, A' = A. Defaults to True.
        transform_scale (bool): Whether r is the scale of the logits; else it is 1. Defaults to False.
        init_cfg (dict, optional): Defaults to None.

    Raises:
        ValueError: If ``embed_dims`` is no multiple of ``num_heads``.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: Optional[float] = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        apply_transform: bool = True,
        transform_scale: bool = False,
        init_cfg: Optional[dict] = None,
    ) -> None:
        super().__init__(init_cfg)
        if embed_dims % num_heads:
            raise ValueError(f'embed_dims={embed_dims} is no multiple of num_heads={num_heads}')
        self.num_heads = num_heads
        self.scale = qk_scale or (embed_dims // num_heads) ** -0.5
        self.attn_drop = attn_drop
        self.apply_transform = apply_transform
        self.reatten_scale = self.scale if transform_scale else 1.0
        if apply_transform:
            self.reatten_matrix = nn.Conv2d(num_heads, num_heads, 1)
            self.var_norm = nn.BatchNorm2d(num_heads)
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, bias=qkv_bias)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, need_map: bool = False) -> Tuple[Tensor, Optional[Tensor]]:
        """Attend.

        Args:
            x (Tensor): Tokens (B, N, C).
            need_map (bool): Whether to return the maps, too. Defaults to False.

        Returns:
            tuple: The output (B, N, C), and the maps A' (B, h, N, N) or None.
        """
        batch, num, channels = x.shape
        # (3, B, h, N, d)
        qkv = self.qkv(x).reshape(batch, num, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind()
        drop = self.attn_drop if self.training else 0.0
        attn = None
        if self.apply_transform or need_map:
            attn = F.dropout(((q * self.scale) @ k.mT).softmax(-1), drop)  # (B, h, N, N)
        if self.apply_transform:
            attn, shift = self.mix_heads(attn)
            # Every entry of A' has the same shift: it adds a multiple of the sum of the values to every row.
            out = attn @ v + shift * v.sum(-2, keepdim=True)
            attn = attn + shift if need_map else None
        elif need_map:
            out = attn @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=drop, scale=self.scale)
        out = out.transpose(1, 2).reshape(batch, num, channels)
        return self.proj_drop(self.proj(out)), attn

    def mix_heads(self, attn: Tensor) -> Tuple[Tensor, Union[Tensor, float]]:
        """Apply Theta, the batch norm and r, save for one shift of each head.

        Convolution and norm are one affine map of the heads. Its statistics in training follow from the mean and the
        second moments of the h maps, so nothing but A itself is ever as large as A.

        Args:
            attn (Tensor): A, (B, h, N, N).

        Returns:
            tuple: The mixed maps (B, h, N, N), and the shift (h, 1, 1) which is still to be added to them.
        """
        norm = self.var_norm
        if type(norm) is not nn.BatchNorm2d:  # synchronised, or fused with the convolution
            return self.reatten_scale * norm(self.reatten_matrix(attn)), 0.0
        theta, beta = self.reatten_matrix.weight.flatten(1), self.reatten_matrix.bias
        flat = attn.flatten(2)  # (B, h, N * N)
        statistics = mixed_statistics(norm, flat, theta, beta) if norm.training else ()
        gain, shift = norm_affine(norm, *statistics)
        weight = (self.reatten_scale * gain[:, None] * theta).to(attn.dtype)
        shift = self.reatten_scale * (gain * beta + shift)
        mixed = torch.bmm(weight.expand(len(flat), -1, -1), flat).view_as(attn)
        return mixed, shift[:, None, None].to(mixed.dtype)

    @torch.no_grad()
    def attention_map(self, x: Tensor, *_: bool) -> Tensor:
        """The maps A' (B, h, N, N) for the inputs of ``forward``."""
        return self.forward(x, need_map=True)[1]


def _arch(
    embed_dims: int,
    num_layers: int,
    transformed: int,
    residual_scale: float = 1.0,
    transform_scale: bool = False,
    stem: str = 'patch',
) -> dict:
    """Settings of a released model, whose last ``transformed`` layers have re-attention."""
    return dict(
        embed_dims=embed_dims,
        num_layers=num_layers,
        num_heads=12,
        feedforward_channels=3 * embed_dims,
        transform_mask=[i >= num_layers - transformed for i in range(num_layers)],
        residual_scale=residual_scale,
        transform_scale=transform_scale,
        stem=stem,
    )


@MODELS.register_module()
class DeepViT(PlainViT):
    """Vision transformer with re-attention.

    Args:
        arch (str | dict): ``'16b'``, ``'24b'`` and ``'32b'`` are the models of the paper, ``'s'`` and ``'l'`` the
            released ones with a convolutional stem. A dict has the keys

            - **embed_dims** (int), **num_layers** (int), **num_heads** (int), **feedforward_channels** (int);
            - **transform_mask** (Sequence[bool]): which layers have re-attention. Defaults to all.
            - **residual_scale** (float): see :class:`ScaledResidualBlock`; it scales all layers. Defaults to 1.
            - **transform_scale** (bool): see :class:`ReAttention`. Defaults to False.
            - **stem** (str): ``'patch'``, or ``'conv2'`` for two convolutions of 64 channels before the projection.
              Defaults to ``'patch'``.

            Defaults to ``'16b'``.
        img_size (int | tuple[int]): The usual size of the image in pixels; positions are resized for others.
            Defaults to 224.
        patch_size (int): Side P of a patch in pixels. Defaults to 16.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (int | Sequence[int]): Layers whose output is returned. Defaults to -1, the last one.
        drop_rate (float): Dropout after the positions and of both branches. Defaults to 0.
        attn_drop_rate (float): Dropout of the maps. Defaults to 0.
        drop_path_rate (float): Stochastic depth of the last layer, rising linearly from 0. Defaults to 0.
        qkv_bias (bool): Whether queries, keys and values have a bias. Defaults to True.
        qk_scale (float, optional): Scale of the logits. Defaults to None, the head's dimension ** -0.5.
        norm_cfg (dict): Defaults to ``dict(type='LN', eps=1e-6)``.
        out_type (str): ``'cls_token'``, ``'featmap'`` (stride P), ``'raw'`` or ``'avg_featmap'``. Defaults to
            ``'cls_token'``.
        frozen_stages (int): The stem and so many layers are frozen. Defaults to -1, none.
        cos_reg_maps (int): Number n of pairs of consecutive maps to keep for the cosine regulariser: in training, the
            maps of the first n + 1 layers are in :attr:`attn_maps` after each forward. ``AttnCosRegHook`` sets it.
            Defaults to 0.
        with_cp (bool): Recompute the layers in the backward pass to save memory. Defaults to False.
        init_cfg (dict | list[dict], optional): Defaults to None: truncated normal linear layers with standard deviation
            0.02.
        **kwargs: Further arguments of mmpretrain's ``VisionTransformer`` (``final_norm``, ``interpolate_mode``, ...).

    Attributes:
        attn_maps (list[Tensor]): See ``cos_reg_maps``. Whoever uses the maps puts an empty list in their place.

    Raises:
        ValueError: If ``arch`` is unknown or incomplete, or its parts do not fit together.
    """

    arch_zoo = {
        '16b': _arch(384, 16, 16),
        '24b': _arch(384, 24, 24),
        '32b': _arch(384, 32, 32),
        's': _arch(396, 16, 5, residual_scale=0.5, transform_scale=True, stem='conv2'),
        'l': _arch(420, 32, 12, residual_scale=0.5, stem='conv2'),
    }
    ARCH_OPTIONS = ('transform_mask', 'residual_scale', 'transform_scale', 'stem')
    STEMS = dict(patch=(), conv2=(64, 64))
    official_layout = 'deepvit'

    def __init__(
        self,
        arch: Union[str, dict] = '16b',
        img_size: Union[int, Tuple[int, int]] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        out_indices: Union[int, Sequence[int]] = -1,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        qkv_bias: bool = True,
        qk_scale: Optional[float] = None,
        norm_cfg: dict = dict(type='LN', eps=1e-6),
        out_type: str = 'cls_token',
        frozen_stages: int = -1,
        cos_reg_maps: int = 0,
        with_cp: bool = False,
        init_cfg: Union[dict, list, None] = None,
        **kwargs,
    ) -> None:
        settings = self.settings_of(arch)
        dims = settings['embed_dims']
        mask = settings.get('transform_mask', [True] * settings['num_layers'])
        stem = settings.get('stem', 'patch')
        if len(mask) != settings['num_layers']:
            raise ValueError(
                f'transform_mask has {len(mask)} entries for num_layers={settings["num_layers"]}'
            )
        if stem not in self.STEMS:
            raise ValueError(f'stem must be one of {sorted(self.STEMS)}, got {stem!r}')

        def make_layer(index: int, rate: float) -> ScaledResidualBlock:
            attn = ReAttention(
                dims,
                settings['num_heads'],
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                attn_drop=attn_drop_rate,
                proj_drop=drop_rate,
                apply_transform=mask[index],
                transform_scale=settings.get('transform_scale', False),
            )
            return ScaledResidualBlock(
                attn,
                dims,
                settings['feedforward_channels'],
                residual_scale=settings.get('residual_scale', 1.0),
                drop_rate=drop_rate,
                drop_path_rate=rate,
                norm_cfg=norm_cfg,
            )

        super().__init__(
            settings,
            img_size=img_size,
            patch_size=patch_size,
            in_channels=in_channels,
            out_indices=out_indices,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            norm_cfg=norm_cfg,
            out_type=out_type,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            stem_widths=self.STEMS[stem],
            make_layer=make_layer,
            init_cfg=init_cfg or dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
            **kwargs,
        )
        self.cos_reg_maps = cos_reg_maps
        self.attn_maps: List[Tensor] = []

    def __getstate__(self) -> dict:
        """What copies and pickles take along: all but maps, which belong to the last forward's graph."""
        return {**self.__dict__, 'attn_maps': []}

    def forward(self, x: Tensor) -> tuple:
        """Extract features; see :meth:`PlainViT.forward`."""
        self.attn_maps = []
        return super().forward(x)

    def run_layer(self, index: int, x: Tensor, state: None) -> Tuple[Tensor, None]:
        """Run one layer, and keep its map if the regulariser needs it."""
        keep = self.training and self.cos_reg_maps > 0 and index <= self.cos_reg_maps
        x, attn = self.maybe_checkpoint(self.layers[index], x, keep)
        if keep:
            self.attn_maps.append(attn)
        return x, None


def attention_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Mean cosine similarity between the maps of two layers (section 3).

    For each image, head and key, the vectors of its weights over all queries are compared.

    Args:
        first, second (Tensor): Maps (B, h, queries, keys).

    Returns:
        Tensor: Scalar in [-1, 1].
    """
    return F.cosine_similarity(first.float(), second.float(), dim=-2).mean()


def stock_attention_map(attn: MultiheadAttention, x: Tensor) -> Tensor:
    """The maps (B, h, N, N) of the host's attention, dense or k-NN, for tokens (B, N, C)."""
    q, k, _ = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
    # With unit vectors for values, the output is the weights.
    units = torch.eye(x.shape[1], dtype=k.dtype, device=k.device).expand(*k.shape[:2], -1, -1)
    return attn.scaled_dot_product_attention(q, k, units)


@HOOKS.register_module()
class AttentionSimilarityHook(Hook):
    """Log how alike the attention maps of consecutive layers are, on a few batches of the validation.

    Writes ``attn_similarity``, the mean over all pairs, and ``attn_similarity_last``, that of the last pairs, beside
    the metrics of the validation. 1 means that the maps are the same (section 3).

    It knows the attention of ``DeepViT``, of ``RefinerViT``, and mmpretrain's ``MultiheadAttention`` (ViT, DeiT, T2T),
    dense or with k-NN attention.

    Args:
        interval (int): Validations between two measurements. Defaults to 1.
        num_batches (int): Batches to measure on, the first ones. Defaults to 2.
        num_last (int): Pairs that count as the last ones. Defaults to 8.
        each_pair (bool): Whether to write ``attn_similarity_1``, that of the first two layers, and so on, too.
            Defaults to False.
    """

    def __init__(
        self,
        interval: int = 1,
        num_batches: int = 2,
        num_last: int = 8,
        each_pair: bool = False,
    ) -> None:
        self.interval = interval
        self.num_batches = num_batches
        self.num_last = num_last
        self.each_pair = each_pair
        self._validations = 0
        self._maps: List[Tensor] = []
        self._similarities: List[Tensor] = []

    def before_val(self, runner) -> None:
        """Find the attention modules.

        Raises:
            ValueError: If there are fewer than two.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._modules = [
            m
            for m in model.modules()
            if hasattr(m, 'attention_map')
            or getattr(type(m), 'forward', None) is MultiheadAttention.forward
        ]
        if len(self._modules) < 2:
            raise ValueError(
                f'AttentionSimilarityHook: {type(model).__name__} has {len(self._modules)} attention modules that hand '
                'out a map; two are needed. Known are DeepViT, RefinerViT and MultiheadAttention of mmpretrain.'
            )

    def _record(self, module: nn.Module, inputs: tuple, output) -> None:
        own = hasattr(module, 'attention_map')
        self._maps.append(
            module.attention_map(*inputs) if own else stock_attention_map(module, *inputs)
        )

    def before_val_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Listen to the attention modules in the first batches of every ``interval``-th validation."""
        due = self._validations % self.interval == 0 and batch_idx < self.num_batches
        self._handles = [m.register_forward_hook(self._record) for m in self._modules if due]

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Compare the maps of the batch, and forget them."""
        for handle in self._handles:
            handle.remove()
        maps, self._maps = self._maps, []
        if maps:
            pairs = [
                attention_similarity(a, b) for a, b in zip(maps, maps[1:]) if a.shape == b.shape
            ]
            self._similarities.append(torch.stack(pairs))

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Write the similarities to the log."""
        self._validations += 1
        if not self._similarities:
            return
        pairs = torch.stack(self._similarities).mean(0)  # (layers - 1, )
        self._similarities = []
        all_reduce(pairs, op='mean')
        figures = {
            'val/attn_similarity': pairs.mean().item(),
            'val/attn_similarity_last': pairs[-self.num_last :].mean().item(),
        }
        if self.each_pair:
            figures.update(
                {f'val/attn_similarity_{i}': pair for i, pair in enumerate(pairs.tolist(), 1)}
            )
        runner.message_hub.update_scalars(figures)


@register_layout('deepvit')
def official_keys(state: StateDict) -> StateDict:
    """Map the flat keys of the released models."""
    return deit_keys(state, STEM_KEYS)
