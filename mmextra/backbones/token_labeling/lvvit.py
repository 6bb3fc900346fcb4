"""LV-ViT: a vision transformer with a convolutional stem and scaled residual branches."""

from collections import OrderedDict
from typing import List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from mmengine.model.weight_init import trunc_normal_
from mmengine.utils import to_2tuple
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmextra.backbones.plain_vit import conv_norm, resize_tokens
from mmextra.engine.arguments import resolve_indices
from mmextra.engine.checkpoint import StateDict, is_checkpoint_init, register_layout
from mmextra.registry import MODELS

from .head import NO_BOX, Box, MixToken

BLOCK_KINDS = ('tr', 'mha', 'ffn')


@register_layout('token_labeling')
def official_layout(state: StateDict) -> StateDict:
    """Map the authors' keys: the classifiers go to the head, all else to the backbone."""
    heads = dict(head='head.fc', aux_head='head.aux_fc')
    mapped = {}
    for key, value in state.items():
        part, _, rest = key.partition('.')
        mapped[f'{heads[part]}.{rest}' if part in heads else f'backbone.{key}'] = value
    return mapped


def mlp(dim: int, hidden: int, drop: float = 0.0) -> nn.Sequential:
    """Linear, GELU, Linear, with dropout after both; under the authors' names."""
    layers = dict(
        fc1=nn.Linear(dim, hidden),
        act=nn.GELU(),
        drop1=nn.Dropout(drop),
        fc2=nn.Linear(hidden, dim),
        drop2=nn.Dropout(drop),
    )
    return nn.Sequential(OrderedDict(layers))


def conv_bn_relu(x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> Tensor:
    """Convolution, batch norm and ReLU."""
    return F.relu(conv_norm(x, conv, bn), inplace=True)


class ConvStem(nn.Module):
    """The stem "4_2": three convolutions, the first of stride 2, and a patchify convolution.

    Args:
        in_channels (int): Channels of the images.
        stem_channels (int): Channels of the three convolutions.
        dim (int): Channels C of the tokens.
        patch_size (int): Side of a patch in pixels, even.
    """

    def __init__(self, in_channels: int, stem_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, stem_channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_channels)
        self.conv2 = nn.Conv2d(stem_channels, stem_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(stem_channels)
        self.conv3 = nn.Conv2d(stem_channels, stem_channels, 3, 1, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(stem_channels)
        self.proj = nn.Conv2d(stem_channels, dim, patch_size // 2, patch_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, 3, H, W) as (B, C, H/P, W/P)."""
        x = x.contiguous(memory_format=torch.channels_last)
        x = conv_bn_relu(x, self.conv1, self.bn1)
        x = conv_bn_relu(x, self.conv2, self.bn2)
        x = conv_bn_relu(x, self.conv3, self.bn3)
        return self.proj(x)


class LVViTAttention(nn.Module):
    """Multi-head self-attention whose heads may be wider or narrower than C / heads.

    Args:
        dim (int): Channels C.
        num_heads (int): Number of heads h.
        head_dim (int, optional): Channels e of a head. Defaults to C / h.
        qkv_bias (bool): Whether queries, keys and values have a bias. Defaults to False.
        qk_scale (float, optional): Factor of the products. Defaults to ``e ** -0.5``.
        attn_drop (float): Dropout rate of the attention. Defaults to 0.
        proj_drop (float): Dropout rate of the output. Defaults to 0.

    Raises:
        ValueError: If C is not a multiple of the heads and no ``head_dim`` is given.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: Optional[int] = None,
        qkv_bias: bool = False,
        qk_scale: Optional[float] = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if head_dim is None and dim % num_heads:
            raise ValueError(
                f'dim={dim} is no multiple of num_heads={num_heads}; change one, or give head_dim'
            )
        self.num_heads = num_heads
        self.head_dim = head_dim or dim // num_heads
        self.scale = qk_scale or self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * num_heads * self.head_dim, bias=qkv_bias)
        self.attn_drop = attn_drop
        self.proj = nn.Linear(num_heads * self.head_dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Attend among the tokens of ``x`` (B, N, C)."""
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, h, N, e) each
        dropout = self.attn_drop if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.scale)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))


class LVViTBlock(nn.Module):
    r"""Pre-norm transformer block with scaled residual branches (section 3.3).

    .. math:: x \leftarrow x + f(LN(x)) / \lambda

    with f first the attention, then the MLP. Blocks with only one of them have
    :math:`x + f(LN(\lambda x)) / \lambda`.

    Args:
        dim (int): Channels C.
        num_heads (int): Number of heads.
        mlp_ratio (float): Width of the MLP over C. Defaults to 3.
        head_dim (int, optional): Channels of a head. Defaults to C / heads.
        qkv_bias (bool): Whether queries, keys and values have a bias. Defaults to False.
        qk_scale (float, optional): Factor of the products. Defaults to that of the attention.
        drop (float): Dropout rate of the branches. Defaults to 0.
        attn_drop (float): Dropout rate of the attention. Defaults to 0.
        drop_path (float): Stochastic depth rate. Defaults to 0.
        skip_lam (float): :math:`\lambda`. Defaults to 1.
        kind (str): ``'tr'`` for both branches, ``'mha'`` for attention, ``'ffn'`` for the MLP.
            Defaults to ``'tr'``.

    Raises:
        ValueError: If ``kind`` is none of these.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 3.0,
        head_dim: Optional[int] = None,
        qkv_bias: bool = False,
        qk_scale: Optional[float] = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        skip_lam: float = 1.0,
        kind: str = 'tr',
    ) -> None:
        super().__init__()
        if kind not in BLOCK_KINDS:
            raise ValueError(f'kind must be one of {BLOCK_KINDS}, got {kind!r}')
        self.skip_lam = skip_lam
        self.norm_gain = 1.0 if kind == 'tr' else skip_lam
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.attn = self.mlp = None
        if kind != 'ffn':
            self.norm1 = nn.LayerNorm(dim)
            self.attn = LVViTAttention(
                dim, num_heads, head_dim, qkv_bias, qk_scale, attn_drop, drop
            )
        if kind != 'mha':
            self.norm2 = nn.LayerNorm(dim)
            self.mlp = mlp(dim, int(dim * mlp_ratio), drop)

    def add_branch(self, x: Tensor, norm: nn.Module, branch: nn.Module) -> Tensor:
        """``x`` plus one scaled residual branch."""
        inner = x if self.norm_gain == 1 else self.norm_gain * x
        return torch.add(x, self.drop_path(branch(norm(inner))), alpha=1 / self.skip_lam)

    def forward(self, x: Tensor) -> Tensor:
        """Transform the tokens ``x``, (..., N, C) if there is no attention, else (B, N, C)."""
        if self.attn is not None:
            x = self.add_branch(x, self.norm1, self.attn)
        if self.mlp is not None:
            x = self.add_branch(x, self.norm2, self.mlp)
        return x


@MODELS.register_module()
class LVViT(BaseBackbone):
    """LV-ViT (section 3.3): convolutional stem, class token, scaled residual branches.

    Args:
        arch (str | dict): ``'t'``, ``'s'``, ``'m'``, ``'l'``, or a dict with ``embed_dims``,
            ``num_layers``, ``num_heads`` and, optionally, ``skip_lam`` (default 1) and
            ``stem_channels`` (default 64; 0 for a patchify convolution alone).
            Defaults to ``'s'``.
        img_size (int | tuple[int]): Size of the images (h, w) that the positions are made for.
            Others work too, by interpolation. Defaults to 224.
        patch_size (int): Side of a patch, even. Defaults to 16.
        in_channels (int): Channels of the images. Defaults to 3.
        mlp_ratio (float): Width of the MLPs over the channels. Defaults to 3.
        head_dim (int, optional): Channels of a head. Defaults to embed_dims / num_heads.
        qkv_bias (bool): Whether queries, keys and values have a bias. Defaults to False.
        qk_scale (float, optional): Factor of the products of queries and keys.
            Defaults to ``head_dim ** -0.5``.
        order (Sequence[str], optional): Kind of each block: ``'tr'`` (attention and MLP),
            ``'mha'`` or ``'ffn'``. Defaults to ``'tr'`` for all.
        drop_rate (float): Dropout rate. Defaults to 0.
        attn_drop_rate (float): Dropout rate of the attention. Defaults to 0.
        drop_path_rate (float): Stochastic depth rate of the last block; it grows linearly from 0.
            Defaults to 0.
        mix_token (bool): Mix tokens in training, see :class:`MixToken`. Needs ``out_type='dense'``
            and the last block among ``out_indices``. Defaults to False.
        out_indices (int | Sequence[int]): Blocks to give the output of. Defaults to -1.
        out_type (str): ``'cls_token'`` (B, C), ``'featmap'`` (B, C, h, w), ``'avg_featmap'``
            (B, C), ``'raw'`` (B, 1 + N, C), or ``'dense'``: feature maps, of which the last is a
            list ``[patch_map, cls_token, box]`` for :class:`TokenLabelClsHead`. Images that are no
            whole number of tokens are padded at the right and the bottom for ``'featmap'``; else
            the rest is dropped, as the authors do. Defaults to ``'cls_token'``.
        final_norm (bool): Whether to normalise the output of the last block. Defaults to True.
        interpolate_mode (str): Interpolation of the positions. Defaults to ``'bicubic'``.
        frozen_stages (int): Freeze the stem and so many blocks; -1 freezes nothing.
            Defaults to -1.
        with_cp (bool): Recompute the blocks in the backward pass to save memory.
            Defaults to False.
        init_cfg (dict | list[dict], optional): Defaults to truncated normal weights, std 0.02.

    Raises:
        ValueError: If an argument is out of its range.
    """

    arch_zoo = {
        't': dict(embed_dims=240, num_layers=12, num_heads=4),
        's': dict(embed_dims=384, num_layers=16, num_heads=6, skip_lam=2.0),
        'm': dict(embed_dims=512, num_layers=20, num_heads=8, skip_lam=2.0),
        'l': dict(embed_dims=768, num_layers=24, num_heads=12, skip_lam=3.0, stem_channels=128),
    }
    OUT_TYPES = ('cls_token', 'featmap', 'avg_featmap', 'raw', 'dense')
    official_layout = 'token_labeling'

    def __init__(
        self,
        arch: Union[str, dict] = 's',
        img_size: Union[int, Tuple[int, int]] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        mlp_ratio: float = 3.0,
        head_dim: Optional[int] = None,
        qkv_bias: bool = False,
        qk_scale: Optional[float] = None,
        order: Optional[Sequence[str]] = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        mix_token: bool = False,
        out_indices: Union[int, Sequence[int]] = -1,
        out_type: str = 'cls_token',
        final_norm: bool = True,
        interpolate_mode: str = 'bicubic',
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: Union[dict, List[dict], None] = [
            dict(type='TruncNormal', layer='Linear', std=0.02),
            dict(type='Constant', layer='LayerNorm', val=1.0),
        ],
    ) -> None:
        super().__init__(init_cfg)
        settings = self._settings(arch)
        self.embed_dims = settings['embed_dims']
        self.num_layers = settings['num_layers']
        order = list(order or ['tr'] * self.num_layers)
        self.out_indices = resolve_indices(out_indices, self.num_layers, 'blocks')
        self._check(patch_size, order, out_type, mix_token, frozen_stages)
        self.out_type = out_type
        self.interpolate_mode = interpolate_mode
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp
        self.mix_token = MixToken() if mix_token else None

        self.patch_size = patch_size
        self.patch_resolution = tuple(side // patch_size for side in to_2tuple(img_size))
        num_patches = self.patch_resolution[0] * self.patch_resolution[1]
        stem_channels = settings.get('stem_channels', 64)
        if stem_channels:
            self.patch_embed = ConvStem(in_channels, stem_channels, self.embed_dims, patch_size)
        else:
            proj = nn.Conv2d(in_channels, self.embed_dims, patch_size, patch_size)
            self.patch_embed = nn.Sequential(OrderedDict(proj=proj))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + num_patches, self.embed_dims))
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = nn.ModuleList(
            LVViTBlock(
                self.embed_dims,
                settings['num_heads'],
                mlp_ratio,
                head_dim,
                qkv_bias,
                qk_scale,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=rate,
                skip_lam=settings.get('skip_lam', 1.0),
                kind=kind,
            )
            for kind, rate in zip(order, np.linspace(0, drop_path_rate, len(order)).tolist())
        )
        self.final_norm = final_norm
        self.norm = nn.LayerNorm(self.embed_dims)
        if not final_norm:  # kept for official checkpoints, lest distributed training wait for it
            self.norm.requires_grad_(False)
        self._register_load_state_dict_pre_hook(self._resize_loaded_pos_embed)
        self._freeze_stages()

    @classmethod
    def _settings(cls, arch: Union[str, dict]) -> dict:
        if isinstance(arch, str):
            if arch not in cls.arch_zoo:
                raise ValueError(f'arch must be one of {list(cls.arch_zoo)}, got {arch!r}')
            return cls.arch_zoo[arch]
        missing = {'embed_dims', 'num_layers', 'num_heads'} - set(arch)
        unknown = set(arch) - {'embed_dims', 'num_layers', 'num_heads', 'skip_lam', 'stem_channels'}
        if missing or unknown:
            raise ValueError(f'arch lacks {sorted(missing)} and has unknown {sorted(unknown)}')
        return arch

    def _check(self, patch_size, order, out_type, mix_token, frozen_stages) -> None:
        if patch_size % 2:
            raise ValueError(f'patch_size must be even, as the stem halves it, got {patch_size}')
        if len(order) != self.num_layers or set(order) - set(BLOCK_KINDS):
            raise ValueError(
                f'order must name one of {BLOCK_KINDS} for each of {self.num_layers} blocks, '
                f'got {order}'
            )
        if out_type not in self.OUT_TYPES:
            raise ValueError(f'out_type must be one of {self.OUT_TYPES}, got {out_type!r}')
        if mix_token and out_type != 'dense':
            raise ValueError(
                f"mix_token needs out_type='dense' to hand on the box, got out_type={out_type!r}"
            )
        if mix_token and self.num_layers - 1 not in self.out_indices:
            raise ValueError(
                'mix_token hands on the box with the last block, which out_indices='
                f'{self.out_indices} lacks'
            )
        if not -1 <= frozen_stages <= self.num_layers:
            raise ValueError(
                f'frozen_stages must lie in [-1, {self.num_layers}], got {frozen_stages}'
            )

    def init_weights(self) -> None:
        """Initialise the weights, unless they come from a checkpoint."""
        super().init_weights()
        if not is_checkpoint_init(self.init_cfg):
            trunc_normal_(self.pos_embed, std=0.02)
            trunc_normal_(self.cls_token, std=0.02)

    def _resize_loaded_pos_embed(self, state_dict: StateDict, prefix: str, *args) -> None:
        """Fit the positions of a checkpoint of another image size, taken to be square."""
        pos_embed = state_dict.get(f'{prefix}pos_embed')
        if pos_embed is None or pos_embed.shape == self.pos_embed.shape:
            return
        side = int((pos_embed.shape[1] - 1) ** 0.5)
        state_dict[f'{prefix}pos_embed'] = resize_tokens(
            pos_embed,
            (side, side),
            self.patch_resolution,
            self.interpolate_mode,
            num_extra_tokens=1,
        )

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        self.cls_token.requires_grad_(False)
        self.pos_embed.requires_grad_(False)
        for module in (self.patch_embed, self.pos_drop, *self.blocks[: self.frozen_stages]):
            module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> 'LVViT':
        """Set the mode, keeping frozen stages in eval mode."""
        super().train(mode)
        self._freeze_stages()
        return self

    def forward(self, x: Tensor) -> tuple:
        """Extract features.

        Args:
            x (Tensor): Images, (B, 3, H, W).

        Returns:
            tuple: One entry for each of ``out_indices``, see ``out_type``.
        """
        if self.out_type == 'featmap':
            x = F.pad(x, (0, -x.shape[3] % self.patch_size, 0, -x.shape[2] % self.patch_size))
        x, box = self.patch_embed(x), NO_BOX  # (B, C, h, w)
        if self.mix_token is not None and self.training:
            x, box = self.mix_token.mix(x)
        grid = tuple(x.shape[2:])
        tokens = x.flatten(2).mT
        tokens = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), tokens), 1)  # (B, 1 + N, C)
        tokens = self.pos_drop(tokens + self._positions(grid))

        outs = []
        for i, block in enumerate(self.blocks):
            if self.with_cp and tokens.requires_grad:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
            if i in self.out_indices:
                last = i == self.num_layers - 1
                normed = self.norm(tokens) if last and self.final_norm else tokens
                outs.append(self._format(normed, grid, box, last))
        return tuple(outs)

    def _positions(self, grid: Tuple[int, int]) -> Tensor:
        return resize_tokens(
            self.pos_embed, self.patch_resolution, grid, self.interpolate_mode, num_extra_tokens=1
        )

    def _format(self, tokens: Tensor, grid: Tuple[int, int], box: Box, last: bool):
        if self.out_type == 'raw':
            return tokens
        if self.out_type == 'cls_token':
            return tokens[:, 0]
        if self.out_type == 'avg_featmap':
            return tokens[:, 1:].mean(1)
        featmap = tokens[:, 1:].mT.unflatten(2, grid)
        return [featmap, tokens[:, 0], box] if self.out_type == 'dense' and last else featmap

    def get_layer_depth(self, param_name: str, prefix: str = '') -> Tuple[int, int]:
        """Depth of a parameter for layer-wise learning rates.

        Args:
            param_name (str): Name of the parameter.
            prefix (str): Prefix of the backbone's parameters. Defaults to ''.

        Returns:
            tuple[int, int]: Depth, 0 for the stem, and the number of depths.
        """
        num_depths = self.num_layers + 2
        if not param_name.startswith(prefix):
            return num_depths - 1, num_depths
        part, _, rest = param_name[len(prefix) :].partition('.')
        if part == 'blocks':
            return int(rest.partition('.')[0]) + 1, num_depths
        return (num_depths - 1 if part == 'norm' else 0), num_depths


@MODELS.register_module()
class LVViTPyramid(BaseModule):
    """Neck that gives maps of four blocks to a segmentation head, as the authors do for UPerNet.

    The first map is enlarged four times and the second twice, by transposed convolutions; the
    others keep stride 16. A 1x1 convolution with norm and ReLU follows on each. Where the norms
    stand and how wide the maps are (but the last) is our reading.

    Args:
        in_channels (int): Channels of all four maps.
        out_channels (Sequence[int]): Channels of each output.
            Defaults to ``(256, 512, 1024, 2048)``.
        norm_cfg (dict): Defaults to ``dict(type='SyncBN')``.
        init_cfg (dict, optional): Defaults to None.
    """

    SCALES = (4, 2, 1, 1)

    def __init__(
        self,
        in_channels: int,
        out_channels: Sequence[int] = (256, 512, 1024, 2048),
        norm_cfg: dict = dict(type='SyncBN'),
        init_cfg: Optional[dict] = None,
    ) -> None:
        super().__init__(init_cfg)
        if len(out_channels) != len(self.SCALES):
            raise ValueError(f'out_channels must be four numbers, got {out_channels}')
        self.levels = nn.ModuleList()
        for scale, channels in zip(self.SCALES, out_channels):
            level = [ConvModule(in_channels, channels, 1, norm_cfg=norm_cfg)]
            if scale > 1:
                level.insert(0, nn.ConvTranspose2d(in_channels, in_channels, scale, scale))
            self.levels.append(nn.Sequential(*level))

    def forward(self, feats: Sequence[Tensor]) -> Tuple[Tensor, ...]:
        """Resize the maps.

        Args:
            feats (Sequence[Tensor]): Four maps (B, C, h, w) of stride 16.

        Returns:
            tuple[Tensor]: Maps of strides 4, 8, 16 and 16.
        """
        if len(feats) != len(self.levels):
            raise ValueError(
                f'LVViTPyramid takes four maps, got {len(feats)}: set out_indices of the backbone'
            )
        return tuple(level(x) for level, x in zip(self.levels, feats))
