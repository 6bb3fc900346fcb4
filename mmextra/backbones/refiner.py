"""Refiner: Refining Self-attention for Vision Transformers. arXiv 2106.03714, 2021.

The attention maps themselves are refined: a 1x1 convolution expands the heads, a depth-wise 3x3 convolution runs over
the queries x keys plane of each ("distributed local attention"), and another one projects back. In the released models
every second layer does so with the map of the layer before it, and computes no queries and keys of its own.

Registered here: ``DistributedLocalAttention``, ``RefinedAttention``, ``RefinerViT``, and the cosine regulariser that
the recipes of Refiner and DeepViT use, ``AttnCosRegLoss`` with ``AttnCosRegHook``.
"""

from typing import List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.model import BaseModule, is_model_wrapper
from torch import Tensor, nn

from mmextra.backbones.plain_vit import (
    STEM_KEYS,
    PlainViT,
    ScaledResidualBlock,
    conv_norm,
    deit_keys,
    mixed_statistics,
    norm_affine,
)
from mmextra.backbones.token_labeling import MixToken, swap_box
from mmextra.backbones.token_labeling.head import NO_BOX
from mmextra.engine.checkpoint import StateDict, register_layout
from mmextra.registry import HOOKS, MODELS


@MODELS.register_module()
class DistributedLocalAttention(BaseModule):
    r"""Convolutions over attention maps, taken as images with one channel for each head (section 3).

    Conv1x1 (h -> e h), BN, ReLU6; depth-wise Conv3x3, BN, ReLU6; Conv1x1 (e h -> h), BN; plus the input. There are no
    biases, and zeros around the maps.

    Args:
        num_heads (int): Heads h.
        expand_ratio (int): Expansion e; 1 leaves out the first convolution. Defaults to 3.
        kernel_size (int): Side of the depth-wise kernel. Defaults to 3.
        init_cfg (dict, optional): Defaults to None.
    """

    def __init__(
        self,
        num_heads: int,
        expand_ratio: int = 3,
        kernel_size: int = 3,
        init_cfg: Optional[dict] = None,
    ) -> None:
        super().__init__(init_cfg)
        hidden = num_heads * expand_ratio
        if expand_ratio != 1:
            self.conv_exp = nn.Conv2d(num_heads, hidden, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(hidden)
        self.expand_ratio = expand_ratio
        self.depth_sep_conv = nn.Conv2d(
            hidden, hidden, kernel_size, padding='same', groups=hidden, bias=False
        )
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv_pro = nn.Conv2d(hidden, num_heads, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(num_heads)

    def forward(self, attn: Tensor) -> Tensor:
        """Refine maps (B, h, N, N)."""
        hidden = attn
        if self.expand_ratio != 1:
            hidden = self._expand(attn)  # (B, e * h, N, N)
        hidden = F.relu6(conv_norm(hidden, self.depth_sep_conv, self.bn2), inplace=True)
        return self._project(hidden, attn)

    def _expand(self, attn: Tensor) -> Tensor:
        """First convolution, norm and ReLU6, with one matrix product.

        Without batch statistics the channels come out last in memory, which the depth-wise convolution is faster with;
        in training the batch norm behind that would lose more than it gains.
        """
        conv, norm = self.conv_exp, self.bn1
        if type(norm) is not nn.BatchNorm2d:  # synchronised, or fused with the convolution
            return F.relu6(norm(conv(attn)), inplace=True)
        flat, weight = attn.flatten(2), conv.weight.flatten(1)  # (B, h, N * N), (e * h, h)
        statistics = mixed_statistics(norm, flat, weight) if norm.training else ()
        gain, shift = norm_affine(norm, *statistics)
        weight = (gain[:, None] * weight).to(attn.dtype).expand(attn.shape[0], -1, -1)
        shift = shift.to(attn.dtype)
        # ReLU6 in place comes before it is seen as maps: autograd copies whole gradients for what is done to views.
        if norm.training:
            hidden = torch.baddbmm(shift[:, None], weight, flat)  # (B, e * h, N * N)
            return F.relu6(hidden, inplace=True).unflatten(2, attn.shape[2:])
        hidden = torch.baddbmm(shift, flat.mT, weight.mT)  # (B, N * N, e * h)
        return F.relu6(hidden, inplace=True).unflatten(1, attn.shape[2:]).permute(0, 3, 1, 2)

    def _project(self, hidden: Tensor, attn: Tensor) -> Tensor:
        """Last convolution and norm, and the shortcut. The heads come out first in memory, as in ``attn``."""
        conv, norm = self.conv_pro, self.bn3
        if type(norm) is not nn.BatchNorm2d:
            return norm(conv(hidden)) + attn
        flat, weight = hidden.flatten(2), conv.weight.flatten(1)
        if norm.training:
            projected = torch.bmm(weight.expand(attn.shape[0], -1, -1), flat)
            return norm(projected.view_as(attn)) + attn
        gain, shift = norm_affine(norm)
        weight = (gain[:, None] * weight).expand(attn.shape[0], -1, -1)
        return torch.baddbmm(attn.flatten(2), weight, flat).view_as(attn) + shift[:, None, None]


@MODELS.register_module()
class RefinedAttention(BaseModule):
    r"""Multi-head self-attention that takes a map from the layer before it and hands one on (section 3).

    With the map P of the layer before it, and :math:`\sigma` the scale of the logits:

    - plain: :math:`A = \mathrm{softmax}(\sigma q k^T) + \sigma P`, handed on. If ``apply_transform``, then
      :math:`A \leftarrow \mathrm{BN}(\mathrm{DLA}(A))` before it is used and handed on;
    - share: :math:`A = \sigma\,\mathrm{BN}(\mathrm{DLA}(P))`; there are no queries and keys, and P itself is handed on.

    The output is proj(A v).

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads h.
        qkv_bias (bool): Whether queries, keys and values have a bias. Defaults to True.
        qk_scale (float, optional): The scale sigma. Defaults to None, ``(C / h) ** -0.5``.
        attn_drop (float): Dropout of A, after it is handed on. Defaults to 0.
        proj_drop (float): Dropout of the output. Defaults to 0.
        share (bool): Whether to refine the map of the layer before. Defaults to False.
        apply_transform (bool): Whether a plain layer refines its own map. Defaults to False.
        head_expand (int): Expansion of the DLA of ``apply_transform``. A share layer has 3. Defaults to 3.
        kernel_size (int): Side of the kernel of the DLA of ``apply_transform``. A share layer has 3. Defaults to 3.
        init_cfg (dict, optional): Defaults to None.

    Raises:
        ValueError: If ``embed_dims`` is no multiple of ``num_heads``, or in ``forward`` if a share layer gets no map.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: Optional[float] = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        share: bool = False,
        apply_transform: bool = False,
        head_expand: int = 3,
        kernel_size: int = 3,
        init_cfg: Optional[dict] = None,
    ) -> None:
        super().__init__(init_cfg)
        if embed_dims % num_heads:
            raise ValueError(f'embed_dims={embed_dims} is no multiple of num_heads={num_heads}')
        self.num_heads = num_heads
        self.scale = qk_scale or (embed_dims // num_heads) ** -0.5
        self.share = share
        self.dla = None
        if share or apply_transform:
            options = (3, 3) if share else (head_expand, kernel_size)
            self.dla = DistributedLocalAttention(num_heads, *options)
            self.adapt_bn = nn.BatchNorm2d(num_heads)
        self.qkv = nn.Linear(embed_dims, embed_dims * (1 if share else 3), bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, prev: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """Attend.

        Args:
            x (Tensor): Tokens (B, N, C).
            prev (Tensor, optional): The map handed on by the layer before, (B, h, N, N). Defaults to None.

        Returns:
            tuple: The output (B, N, C), and the map to hand on.
        """
        attn, handed_on, v = self._attend(x, prev)
        out = (self.attn_drop(attn) @ v).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(out)), handed_on

    def _attend(self, x: Tensor, prev: Optional[Tensor]) -> Tuple[Tensor, Tensor, Tensor]:
        """The map to use, the one to hand on, and the values (B, h, N, d)."""
        batch, num, _ = x.shape
        # (1 or 3, B, h, N, d)
        qkv = self.qkv(x).reshape(
            batch, num, -1, self.num_heads, self.proj.in_features // self.num_heads
        )
        qkv = qkv.permute(2, 0, 3, 1, 4)
        if self.share:
            if prev is None:
                raise ValueError('a share layer needs the map of the layer before it, got None')
            return self._refine(prev, self.scale), prev, qkv[0]
        q, k, v = qkv.unbind()
        attn = ((q * self.scale) @ k.mT).softmax(-1)
        if prev is not None:
            attn = torch.add(attn, prev, alpha=self.scale)
        if self.dla is not None:
            attn = self._refine(attn)
        return attn, attn, v

    def _refine(self, attn: Tensor, scale: float = 1.0) -> Tensor:
        """DLA and batch norm of a map, times a constant."""
        attn = self.dla(attn)
        if self.adapt_bn.training:
            return scale * self.adapt_bn(attn)
        gain, shift = (scale * p[:, None, None] for p in norm_affine(self.adapt_bn))
        return torch.addcmul(shift, attn, gain)

    @torch.no_grad()
    def attention_map(self, x: Tensor, prev: Optional[Tensor] = None) -> Tensor:
        """The maps that are applied to the values, (B, h, N, N)."""
        return self._attend(x, prev)[0]


def _arch(embed_dims: int, num_layers: int, num_heads: int, head_expand: int) -> dict:
    return dict(
        embed_dims=embed_dims,
        num_layers=num_layers,
        num_heads=num_heads,
        feedforward_channels=3 * embed_dims,
        head_expand=head_expand,
    )


@MODELS.register_module()
class RefinerViT(PlainViT):
    """Vision transformer with refined attention maps.

    A convolutional stem (7x7 of stride 2, two 3x3; 32, 64 and 128 channels), then layers that are plain and share in
    turn, see :class:`RefinedAttention`, with residual branches scaled by 0.5 and a learned scale of the MLP's output.

    Args:
        arch (str | dict): ``'s'``, ``'m'``, ``'l'``, or a dict with the keys ``embed_dims`` (int), ``num_layers``
            (int), ``num_heads`` (int), ``feedforward_channels`` (int) and, optionally, ``head_expand`` (int). Defaults
            to ``'s'``.
        img_size (int | tuple[int]): The usual size of the image in pixels; positions are resized for others.
            Defaults to 224.
        patch_size (int): Side P of a patch in pixels, even. Defaults to 16.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (int | Sequence[int]): Layers whose output is returned. Defaults to -1, the last one.
        share_pattern (Sequence[bool], optional): Which layers refine the map of the layer before. The first one cannot.
            Defaults to None, every second one.
        apply_transform (bool | Sequence[bool]): Whether plain layers, all or each, refine their own map. No released
            model does. Defaults to False.
        head_expand (int, optional): Expansion of the heads where ``apply_transform``; share layers have 3. Defaults to
            that of ``arch``, else 3.
        drop_rate (float): Dropout after the positions and of both branches. Defaults to 0.
        attn_drop_rate (float): Dropout of the maps. Defaults to 0.
        drop_path_rate (float): Stochastic depth of the last layer, rising linearly from 0. Defaults to 0.
        qkv_bias (bool): Whether queries, keys and values have a bias. Defaults to True.
        qk_scale (float, optional): Scale of the logits. Defaults to None, the head's dimension ** -0.5.
        norm_cfg (dict): Defaults to ``dict(type='LN', eps=1e-6)``.
        out_type (str): ``'cls_token'``, ``'featmap'`` (stride P), ``'raw'``, ``'avg_featmap'``; or ``'dense'`` for
            ``TokenLabelClsHead``: feature maps, of which that of the last layer comes as a list ``[map, class token,
            box of mixed tokens]``, in training with the list of attention maps at its end if ``cos_reg_maps``. Defaults
            to ``'cls_token'``.
        mix_token (bool): Mix tokens in training, see ``MixToken``. Needs ``out_type='dense'`` and the last layer among
            ``out_indices``. Defaults to False.
        cos_reg_maps (int): Number n of pairs of consecutive maps to keep for the cosine regulariser: in training, the
            maps that the first n + 1 layers hand on are in :attr:`attn_maps` after each forward. ``AttnCosRegHook``
            sets it. Defaults to 0.
        pos_align_corners (bool): How positions are resized, bilinearly. Defaults to True, as the authors do.
        frozen_stages (int): The stem and so many layers are frozen. Defaults to -1, none.
        with_cp (bool): Recompute the layers in the backward pass: the expanded maps take most of the memory.
            Defaults to False.
        init_cfg (dict | list[dict], optional): Defaults to None: truncated normal linear layers with standard deviation
            0.02.
        **kwargs: Further arguments of mmpretrain's ``VisionTransformer`` (``final_norm``, ...).

    Attributes:
        attn_maps (list[Tensor]): See ``cos_reg_maps``. Whoever uses the maps puts an empty list in their place.

    Raises:
        ValueError: If ``arch`` is unknown or incomplete, or its parts do not fit together.
    """

    arch_zoo = {
        's': _arch(384, 16, 12, head_expand=6),
        'm': _arch(420, 32, 12, head_expand=3),
        'l': _arch(512, 32, 16, head_expand=3),
    }
    ARCH_OPTIONS = ('head_expand',)
    OUT_TYPES = {*PlainViT.OUT_TYPES, 'dense'}
    official_layout = 'refiner'

    def __init__(
        self,
        arch: Union[str, dict] = 's',
        img_size: Union[int, Tuple[int, int]] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        out_indices: Union[int, Sequence[int]] = -1,
        share_pattern: Optional[Sequence[bool]] = None,
        apply_transform: Union[bool, Sequence[bool]] = False,
        head_expand: Optional[int] = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        qkv_bias: bool = True,
        qk_scale: Optional[float] = None,
        norm_cfg: dict = dict(type='LN', eps=1e-6),
        out_type: str = 'cls_token',
        mix_token: bool = False,
        cos_reg_maps: int = 0,
        pos_align_corners: bool = True,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: Union[dict, list, None] = None,
        **kwargs,
    ) -> None:
        settings = self.settings_of(arch)
        dims, num_layers = settings['embed_dims'], settings['num_layers']
        share = [bool(i % 2) for i in range(num_layers)] if share_pattern is None else share_pattern
        transform = (
            apply_transform
            if isinstance(apply_transform, (list, tuple))
            else [apply_transform] * num_layers
        )
        head_expand = head_expand or settings.get('head_expand', 3)
        for name, given in (('share_pattern', share), ('apply_transform', transform)):
            if len(given) != num_layers:
                raise ValueError(f'{name} has {len(given)} entries for num_layers={num_layers}')
        if share[0]:
            raise ValueError('share_pattern[0] must be False: the first layer has no map to refine')
        if mix_token and out_type != 'dense':
            raise ValueError(
                f"mix_token needs out_type='dense' to hand on the box, got out_type={out_type!r}"
            )
        if out_type == 'dense' and not kwargs.get('with_cls_token', True):
            raise ValueError(
                "out_type='dense' hands on the class token: with_cls_token must be True"
            )

        def make_layer(index: int, rate: float) -> ScaledResidualBlock:
            attn = RefinedAttention(
                dims,
                settings['num_heads'],
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                attn_drop=attn_drop_rate,
                proj_drop=drop_rate,
                share=share[index],
                apply_transform=transform[index],
                head_expand=head_expand,
            )
            return ScaledResidualBlock(
                attn,
                dims,
                settings['feedforward_channels'],
                residual_scale=0.5,
                drop_rate=drop_rate,
                drop_path_rate=rate,
                layer_scale_init_value=1e-5,
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
            stem_widths=(32, 64, 128),
            make_layer=make_layer,
            interpolate_mode='bilinear',
            init_cfg=init_cfg or dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
            **kwargs,
        )
        if mix_token and num_layers - 1 not in self.out_indices:
            raise ValueError(
                f'mix_token hands on the box with the last layer, which out_indices={out_indices} lacks'
            )
        self.pos_align_corners = pos_align_corners
        self.mix_token = MixToken() if mix_token else None
        self.cos_reg_maps = cos_reg_maps
        self.attn_maps: List[Tensor] = []

    def __getstate__(self) -> dict:
        """What copies and pickles take along: all but maps, which belong to the last forward's graph."""
        return {**self.__dict__, 'attn_maps': []}

    def forward(self, x: Tensor) -> tuple:
        """Extract features.

        Args:
            x (Tensor): Images (B, in_channels, H, W) of any size.

        Returns:
            tuple: One entry for each of ``out_indices``, in the order of the layers; see ``out_type``.
        """
        x, grid = self.patch_embed(x)
        box = NO_BOX
        if self.mix_token is not None and self.training:
            box = self.mix_token.sample_box(*grid)
            x = swap_box(x.unflatten(1, grid), box).flatten(1, 2)
        self.attn_maps = []
        tokens = self.run_layers(self.add_positions(x, grid))
        outs = [self._format_output(x, grid) for x in tokens]
        if self.out_type == 'dense' and self.num_layers - 1 in self.out_indices:
            maps = [self.attn_maps] if self.attn_maps else []
            outs[-1] = [outs[-1], tokens[-1][:, 0], box, *maps]
        return tuple(outs)

    def run_layer(self, index: int, x: Tensor, prev: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
        """Run one layer, and keep the map that it hands on if the regulariser needs it."""
        x, prev = self.maybe_checkpoint(self.layers[index], x, prev)
        if self.training and self.cos_reg_maps > 0 and index <= self.cos_reg_maps:
            self.attn_maps.append(prev)
        return x, prev

    def _format_output(self, x: Tensor, hw: Tuple[int, int]) -> Tensor:
        if self.out_type == 'dense':
            return x[:, self.num_extra_tokens :].mT.unflatten(2, hw)
        return super()._format_output(x, hw)


@MODELS.register_module()
class AttnCosRegLoss(nn.Module):
    r"""Cosine regulariser of the attention maps of consecutive layers, which keeps them apart.

    .. math:: \frac{w}{n} \sum_{i < n} \mathrm{mean} \cos(A_i, A_{i+1})

    The cosine compares the weights that a query has for a key in all heads, vectors of h entries.

    In ``TokenLabelClsHead`` it is one of ``aux_losses``. With any other head :class:`AttnCosRegHook` adds it.

    Args:
        loss_weight (float): The weight w. Defaults to 0.1.
        num_pairs (int): Number n of pairs of layers, the first ones. Defaults to 12.
        loss_name (str): Its name in the log, which holds ``loss``. Defaults to ``'loss_attn_cos'``.

    Raises:
        ValueError: If ``num_pairs`` is not positive or ``loss_name`` does not say that it is a loss, or in ``forward``
            if there are fewer maps than it takes.
    """

    def __init__(
        self, loss_weight: float = 0.1, num_pairs: int = 12, loss_name: str = 'loss_attn_cos'
    ) -> None:
        super().__init__()
        if num_pairs < 1:
            raise ValueError(f'num_pairs must be at least 1, got {num_pairs}')
        if 'loss' not in loss_name:
            raise ValueError(
                f"loss_name={loss_name!r} must have 'loss' in it: mmengine logs other entries and adds them to no loss"
            )
        self.loss_weight = loss_weight
        self.num_pairs = num_pairs
        self.loss_name = loss_name

    def forward(self, attn_maps: Sequence[Tensor]) -> Tensor:
        """Compute the loss.

        Args:
            attn_maps (Sequence[Tensor]): At least n + 1 maps (B, h, queries, keys), layer by layer.

        Returns:
            Tensor: Scalar.
        """
        if len(attn_maps) <= self.num_pairs:
            raise ValueError(
                f'num_pairs={self.num_pairs} takes {self.num_pairs + 1} attention maps, got {len(attn_maps)}: '
                'set cos_reg_maps of the backbone to num_pairs, and that to less than its layers'
            )
        dtype = torch.promote_types(attn_maps[0].dtype, torch.float32)
        total = attn_maps[0].new_zeros((), dtype=dtype)
        for first, second in zip(attn_maps[: self.num_pairs], attn_maps[1:]):
            if first is second:  # a share layer of Refiner hands on what it got
                total = total + 1.0
            else:
                total = total + F.cosine_similarity(first.to(dtype), second.to(dtype), dim=1).mean()
        return self.loss_weight / self.num_pairs * total


@HOOKS.register_module()
class AttnCosRegHook(Hook):
    """Add the cosine regulariser to the losses of a model whose head knows nothing of it.

    Works with the ViTs of this wing that have ``cos_reg_maps``, in any host. The checkpoint does not change.

    Args:
        loss (dict): Defaults to ``dict(type='mmextra.AttnCosRegLoss')``.
        module (str): Name of the backbone in the model. Defaults to ``'backbone'``.

    Example:
        >>> custom_hooks = [dict(type='mmextra.AttnCosRegHook', loss=dict(type='mmextra.AttnCosRegLoss', num_pairs=12))]
    """

    def __init__(
        self, loss: dict = dict(type='mmextra.AttnCosRegLoss'), module: str = 'backbone'
    ) -> None:
        self.loss = MODELS.build(loss)
        self.module = module

    def before_train(self, runner) -> None:
        """Have the backbone keep its maps, and listen to the losses.

        Raises:
            ValueError: If the backbone does not keep maps, or has too few layers.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        backbone = dict(model.named_modules()).get(self.module)
        if not hasattr(backbone, 'cos_reg_maps'):
            raise ValueError(
                f'AttnCosRegHook: {self.module!r} of {type(model).__name__} is {type(backbone).__name__}, which '
                'keeps no attention maps; mmextra.DeepViT and mmextra.RefinerViT do'
            )
        if self.loss.num_pairs >= backbone.num_layers:
            raise ValueError(
                f'num_pairs={self.loss.num_pairs} must be less than the layers of {self.module!r}: '
                f'{backbone.num_layers}'
            )
        backbone.cos_reg_maps = self.loss.num_pairs
        self._backbone = backbone
        self._handle = model.register_forward_hook(self._add_loss, with_kwargs=True)

    def _add_loss(self, model: nn.Module, args: tuple, kwargs: dict, output):
        if kwargs.get('mode') != 'loss':
            return output
        maps, self._backbone.attn_maps = self._backbone.attn_maps, []
        return {**output, self.loss.loss_name: self.loss(maps)}

    def after_train(self, runner) -> None:
        """Stop listening."""
        self._handle.remove()


@register_layout('refiner')
def official_keys(state: StateDict) -> StateDict:
    """Map the flat keys of the released models, with or without the classifier of patch tokens."""
    dense = 'aux_head.weight' in state
    rename = {'DLA.': 'dla.', '.mlp.scale_channel': '.ffn.gamma2.weight', **STEM_KEYS}
    mapped = deit_keys({k: v for k, v in state.items() if not k.startswith('aux_head.')}, rename)
    if dense:
        mapped = {k.replace('head.layers.head.', 'head.fc.'): v for k, v in mapped.items()}
        mapped.update({f'head.aux_fc.{k}': state[f'aux_head.{k}'] for k in ('weight', 'bias')})
    return mapped
