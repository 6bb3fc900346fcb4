"""VOLO: Vision Outlooker for Visual Recognition. arXiv 2106.13112, TPAMI 2022.

The first stage runs on fine tokens (stride 8) with outlook attention, a local aggregation whose
weights a linear layer reads off the centre token; ordinary transformer blocks at stride 16 and
class attention follow. Trained with token labeling (``mmextra.backbones.token_labeling``).

Registered here: ``VOLO``. Public modules: ``OutlookAttention``, ``Outlooker``, ``ClassAttention``.
"""

from typing import List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from mmengine.model.weight_init import trunc_normal_
from mmengine.utils import to_2tuple
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmextra.backbones.token_labeling import LVViTBlock, MixToken
from mmextra.backbones.token_labeling.head import NO_BOX, Box
from mmextra.backbones.token_labeling.lvvit import conv_bn_relu, mlp
from mmextra.backbones.token_labeling.lvvit import official_layout as token_labeling_layout
from mmextra.engine.arguments import checked, resolve_indices
from mmextra.engine.checkpoint import StateDict, is_checkpoint_init, register_layout
from mmextra.ops.precision import at_least_float32
from mmextra.ops.windows import gather_windows, num_windows, scatter_windows
from mmextra.registry import MODELS


@register_layout('volo')
def official_layout(state: StateDict) -> StateDict:
    """Map the authors' keys as those of LV-ViT, whose authors they are."""
    return token_labeling_layout(state)


@checked
class OutlookAttention(nn.Module):
    """Outlook attention (section 3.1).

    A linear layer turns the centre token of each K x K window into K^2 x K^2 attention weights;
    with them each of the K^2 places of the window gathers values from all of them. What
    overlapping windows give for a pixel is summed.

    Args:
        dim (int): Channels C.
        num_heads (int): Number of heads M.
        kernel_size (int): Side K of a window. Defaults to 3.
        padding (int): Zeros around the map. Defaults to 1.
        stride (int): Distance s of the windows. Their centre token is the mean of s x s pixels.
            Defaults to 1.
        qkv_bias (bool): Whether the values have a bias. Defaults to False.
        qk_scale (float, optional): Factor of the logits. Defaults to ``(C / M) ** -0.5``.
        attn_drop (float): Dropout rate of the attention. Defaults to 0.
        proj_drop (float): Dropout rate of the output. Defaults to 0.

    Raises:
        ValueError: If C is not a multiple of the heads; or, in the forward, if the windows do not
            tile the map as the centre tokens do.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int = 3,
        padding: int = 1,
        stride: int = 1,
        qkv_bias: bool = False,
        qk_scale: Optional[float] = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f'dim={dim} is no multiple of num_heads={num_heads}')
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.padding = padding
        self.stride = stride
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.attn = nn.Linear(dim, kernel_size**4 * num_heads)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Aggregate the map ``x``, (B, H, W, C)."""
        window = (self.kernel_size, self.stride, self.padding)
        attn = self.weights(x)  # (B, h, w, M, K*K targets, K*K sources)
        grid = tuple(num_windows(side, *window) for side in x.shape[1:3])
        if attn.shape[1:3] != grid:
            raise ValueError(
                f'kernel_size={window[0]}, stride={window[1]}, padding={window[2]} give {grid} '
                f'windows on a map of {tuple(x.shape[1:3])}, but there are '
                f'{tuple(attn.shape[1:3])} centre tokens; use padding=(kernel_size - 1) // 2'
            )
        values = gather_windows(self.v(x), self.num_heads, *window)
        out = scatter_windows(attn @ values, x.shape[1:3], *window)
        return self.proj_drop(self.proj(out))

    def weights(self, x: Tensor) -> Tensor:
        """Attention of each window, (B, h, w, M, K*K, K*K), from the map (B, H, W, C)."""
        if self.stride > 1:
            x = x.permute(0, 3, 1, 2)
            x = F.avg_pool2d(x, self.stride, self.stride, ceil_mode=True).permute(0, 2, 3, 1)
        logits = (self.attn(x) * self.scale).unflatten(3, (-1, self.kernel_size**2))
        # A softmax over so few, contiguous entries is many times slower than over a strided axis.
        attn = logits.mT.contiguous().softmax(3).mT
        return self.attn_drop(attn.unflatten(3, (self.num_heads, -1)))


class Outlooker(nn.Module):
    """Pre-norm block of local attention and MLP (section 3.1). It has no stochastic depth.

    Args:
        dim (int): Channels C.
        attn (nn.Module): Local attention from (B, H, W, C) to the same, for example
            :class:`OutlookAttention`.
        mlp_ratio (float): Width of the MLP over C. Defaults to 3.
        drop (float): Dropout rate of the MLP. Defaults to 0.
    """

    def __init__(
        self, dim: int, attn: nn.Module, mlp_ratio: float = 3.0, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, x: Tensor) -> Tensor:
        """Transform the map ``x``, (B, H, W, C)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ClassAttention(nn.Module):
    """Attention of the class token to all tokens, and an MLP on it (section 3.2, after CaiT).

    Args:
        dim (int): Channels C.
        num_heads (int): Number of heads.
        mlp_ratio (float): Width of the MLP over C. Defaults to 3.
        qkv_bias (bool): Whether queries, keys and values have a bias. Defaults to False.
        qk_scale (float, optional): Factor of the products. Defaults to ``(C / heads) ** -0.5``.
        drop (float): Dropout rate of the branches. Defaults to 0.
        attn_drop (float): Dropout rate of the attention. Defaults to 0.
    """

    class Attention(nn.Module):
        """The attention alone, under the authors' names."""

        def __init__(self, dim, num_heads, qkv_bias, qk_scale, attn_drop, proj_drop) -> None:
            super().__init__()
            self.num_heads = num_heads
            self.scale = qk_scale or (dim // num_heads) ** -0.5
            self.attn_drop = attn_drop
            self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
            self.q = nn.Linear(dim, dim, bias=qkv_bias)
            self.proj = nn.Linear(dim, dim)
            self.proj_drop = nn.Dropout(proj_drop)

        def forward(self, x: Tensor) -> Tensor:
            """What the first of the tokens (B, 1 + N, C) gathers, (B, 1, C)."""
            heads = (self.num_heads, -1)
            q = self.q(x[:, :1]).unflatten(2, heads).transpose(1, 2)
            k, v = self.kv(x).unflatten(2, (2, *heads)).permute(2, 0, 3, 1, 4)
            dropout = self.attn_drop if self.training else 0.0
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.scale)
            return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 3.0,
        qkv_bias: bool = False,
        qk_scale: Optional[float] = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = self.Attention(dim, num_heads, qkv_bias, qk_scale, attn_drop, drop)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, cls_token: Tensor, tokens: Tensor) -> Tensor:
        """Update the class token (B, 1, C) from the patch tokens (B, N, C)."""
        x = self.norm1(torch.cat((cls_token, tokens), 1))
        cls_token = cls_token + self.attn(x)
        return cls_token + self.mlp(self.norm2(cls_token))


class PatchEmbed(nn.Module):
    """Three convolutions, the first of stride 2, and a patchify convolution (section 3.3).

    Args:
        in_channels (int): Channels of the images.
        stem_channels (int): Channels S of the three convolutions.
        dim (int): Channels of the tokens.
        patch_size (int): Side of a patch in pixels.
    """

    def __init__(self, in_channels: int, stem_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        layers: List[nn.Module] = []
        for i in range(3):
            previous, geometry = (stem_channels, (3, 1, 1)) if i else (in_channels, (7, 2, 3))
            layers += [
                nn.Conv2d(previous, stem_channels, *geometry, bias=False),
                nn.BatchNorm2d(stem_channels),
                nn.ReLU(inplace=True),
            ]
        self.conv = nn.Sequential(*layers)
        self.proj = nn.Conv2d(stem_channels, dim, patch_size // 2, patch_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, 3, H, W) as (B, C, H/P, W/P)."""
        x = x.contiguous(memory_format=torch.channels_last)
        for i in range(0, len(self.conv), 3):
            x = conv_bn_relu(x, self.conv[i], self.conv[i + 1])
        return self.proj(x)


class Downsample(nn.Module):
    """2x2 convolution of stride 2 between channels-last maps.

    Args:
        dim (int): Channels of the input.
        out_dim (int): Channels of the output.
        pad (bool): Whether odd sides are rounded up, by a border of zeros, instead of down.
            Defaults to False.
    """

    def __init__(self, dim: int, out_dim: int, pad: bool = False) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, out_dim, 2, 2)
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        """Reduce (B, H, W, C) to (B, H/2, W/2, C')."""
        if self.pad:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@MODELS.register_module()
class VOLO(BaseBackbone):
    """Vision Outlooker (section 3).

    Args:
        arch (str | dict): ``'d1'`` ... ``'d5'``, or a dict with, for each stage, ``layers``,
            ``embed_dims``, ``num_heads``, and optionally ``mlp_ratios`` (default 3 each),
            ``outlook`` (whether it has outlook attention; default the first alone) and
            ``downsamples`` (whether one follows; default after the first alone); and optionally
            ``stem_channels`` (default 64) and ``cls_layers`` (number of class attention layers,
            default 2). Defaults to ``'d1'``.
        img_size (int | tuple[int]): Size of the images (h, w) that the positions are made for.
            Others work too, by interpolation. Defaults to 224.
        patch_size (int): Side of a patch in the first stage: 4, 8 or 16. Defaults to 8.
        in_channels (int): Channels of the images. Defaults to 3.
        stem_channels (int, optional): Channels of the stem. Defaults to that of ``arch``.
        outlook_cfg (dict): Window of the outlook attention.
            Defaults to ``dict(kernel_size=3, stride=2, padding=1)``.
        qkv_bias (bool): Whether queries, keys and values have a bias. Defaults to False.
        qk_scale (float, optional): Factor of all attention logits. Defaults to
            ``head_dim ** -0.5``.
        drop_rate (float): Dropout rate of the positions. Defaults to 0.
        attn_drop_rate (float): Dropout rate of the attention. Defaults to 0.
        drop_path_rate (float): Stochastic depth rate of the last transformer block. It grows
            linearly over all layers, but outlookers and class attention have none. Defaults to 0.
        with_cls_attn (bool): Whether to build class token and class attention. Where
            ``out_type`` has no use for them they are frozen, so that official checkpoints load;
            set False to leave them out. Defaults to True.
        mix_token (bool): Mix tokens in training, see ``MixToken``. Needs ``out_type='dense'`` and the
            last stage among ``out_indices``. Defaults to False.
        out_indices (int | Sequence[int]): Stages to give the output of, before the downsample.
            Defaults to -1.
        out_type (str): ``'featmap'`` (B, C, h, w), ``'avg_featmap'`` (B, C), ``'cls_token'``
            (B, C), last stage only, or ``'dense'``: feature maps, of which the last is a list
            ``[patch_map, cls_token, box]`` for ``TokenLabelClsHead``. Images that are no whole
            number of tokens are padded at the right and the bottom for ``'featmap'``; else the
            rest is dropped, as the authors do. Defaults to ``'cls_token'``.
        final_norm (bool): Whether to normalise the output of the last stage. Defaults to True.
        interpolate_mode (str): Interpolation of the positions. Defaults to ``'bicubic'``.
        frozen_stages (int): Freeze the stem and so many stages; -1 freezes nothing.
            Defaults to -1.
        with_cp (bool): Recompute the blocks in the backward pass to save memory.
            Defaults to False.
        init_cfg (dict | list[dict], optional): Defaults to truncated normal weights, std 0.02.

    Raises:
        ValueError: If an argument is out of its range.
    """

    arch_zoo = {
        'd1': dict(layers=(4, 4, 8, 2), embed_dims=(192, 384, 384, 384), num_heads=(6, 12, 12, 12)),
        'd2': dict(
            layers=(6, 4, 10, 4), embed_dims=(256, 512, 512, 512), num_heads=(8, 16, 16, 16)
        ),
        'd3': dict(
            layers=(8, 8, 16, 4), embed_dims=(256, 512, 512, 512), num_heads=(8, 16, 16, 16)
        ),
        'd4': dict(
            layers=(8, 8, 16, 4), embed_dims=(384, 768, 768, 768), num_heads=(12, 16, 16, 16)
        ),
        'd5': dict(
            layers=(12, 12, 20, 4),
            embed_dims=(384, 768, 768, 768),
            num_heads=(12, 16, 16, 16),
            mlp_ratios=(4.0, 4.0, 4.0, 4.0),
            stem_channels=128,
        ),
    }
    ARCH_DEFAULTS = dict(
        mlp_ratios=(3.0, 3.0, 3.0, 3.0),
        stem_channels=64,
        outlook=(True, False, False, False),
        downsamples=(True, False, False, False),
        cls_layers=2,
    )
    OUT_TYPES = ('featmap', 'avg_featmap', 'cls_token', 'dense')
    official_layout = 'volo'

    def __init__(
        self,
        arch: Union[str, dict] = 'd1',
        img_size: Union[int, Tuple[int, int]] = 224,
        patch_size: int = 8,
        in_channels: int = 3,
        stem_channels: Optional[int] = None,
        outlook_cfg: dict = dict(kernel_size=3, stride=2, padding=1),
        qkv_bias: bool = False,
        qk_scale: Optional[float] = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        with_cls_attn: bool = True,
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
        self.arch_settings = settings = self._settings(arch)
        self.layers = settings['layers']
        self.num_stages = len(self.layers)
        self.embed_dims = settings['embed_dims'][-1]
        self.out_type = out_type
        self.out_indices = resolve_indices(out_indices, self.num_stages, 'stages')
        self._check(patch_size, out_type, with_cls_attn, mix_token, frozen_stages)
        self.outlook_cfg = outlook_cfg
        # Handed to every kind of attention.
        self.attn_cfg = dict(qkv_bias=qkv_bias, qk_scale=qk_scale, attn_drop=attn_drop_rate)
        self.final_norm = final_norm
        self.interpolate_mode = interpolate_mode
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp
        self.mix_token = MixToken() if mix_token else None

        self.patch_embed = PatchEmbed(
            in_channels,
            stem_channels or settings['stem_channels'],
            settings['embed_dims'][0],
            patch_size,
        )
        self.network = nn.ModuleList()
        self.stage_positions = []  # of the stages in `network`, which holds the downsamples too
        for i in range(self.num_stages):
            self.stage_positions.append(len(self.network))
            self.network.append(self._make_stage(i, drop_path_rate))
            if settings['downsamples'][i] and i + 1 < self.num_stages:
                widths = settings['embed_dims'][i : i + 2]
                self.network.append(Downsample(*widths, pad=out_type == 'featmap'))
        halved = [isinstance(m, Downsample) for m in self.network]
        self.patch_size = patch_size
        self.reduction = 2 ** sum(halved)  # from the first tokens to the last
        # Positions are added before the third member of `network`, which is of the second width.
        grid = (side // patch_size // 2 ** sum(halved[:2]) for side in to_2tuple(img_size))
        self.pos_embed = nn.Parameter(torch.zeros(1, *grid, settings['embed_dims'][:2][-1]))
        self.pos_drop = nn.Dropout(drop_rate)
        self.post_network = None
        if with_cls_attn:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims))
            self.post_network = nn.ModuleList(
                ClassAttention(
                    self.embed_dims,
                    settings['num_heads'][-1],
                    settings['mlp_ratios'][-1],
                    **self.attn_cfg,
                )
                for _ in range(settings['cls_layers'])
            )
        self.norm = nn.LayerNorm(self.embed_dims)
        self._register_load_state_dict_pre_hook(self._resize_loaded_pos_embed)
        self._freeze_unused()
        self._freeze_stages()

    @classmethod
    def _settings(cls, arch: Union[str, dict]) -> dict:
        if isinstance(arch, str):
            if arch not in cls.arch_zoo:
                raise ValueError(f'arch must be one of {list(cls.arch_zoo)}, got {arch!r}')
            return {**cls.ARCH_DEFAULTS, **cls.arch_zoo[arch]}
        required = {'layers', 'embed_dims', 'num_heads'}
        missing, unknown = required - set(arch), set(arch) - required - set(cls.ARCH_DEFAULTS)
        if missing or unknown:
            raise ValueError(f'arch lacks {sorted(missing)} and has unknown {sorted(unknown)}')
        settings = {**cls.ARCH_DEFAULTS, **arch}
        lengths = {k: len(v) for k, v in settings.items() if isinstance(v, (list, tuple))}
        if len(set(lengths.values())) != 1:
            raise ValueError(f'arch must have one entry for each stage, got lengths {lengths}')
        dims = settings['embed_dims']
        if any(
            a != b and not halve for a, b, halve in zip(dims, dims[1:], settings['downsamples'])
        ):
            raise ValueError(
                f'embed_dims={dims} change where no downsample follows: {settings["downsamples"]}'
            )
        return settings

    def _check(self, patch_size, out_type, with_cls_attn, mix_token, frozen_stages) -> None:
        if patch_size not in (4, 8, 16):
            raise ValueError(f'patch_size must be 4, 8 or 16, got {patch_size}')
        if out_type not in self.OUT_TYPES:
            raise ValueError(f'out_type must be one of {self.OUT_TYPES}, got {out_type!r}')
        if out_type in ('cls_token', 'dense') and not with_cls_attn:
            raise ValueError(f'out_type={out_type!r} needs the class token: with_cls_attn=True')
        if out_type == 'cls_token' and self.out_indices != (self.num_stages - 1,):
            raise ValueError(
                'only the last stage has a class token: set out_indices=-1 or another out_type, '
                f'got out_indices={self.out_indices}'
            )
        if mix_token and out_type != 'dense':
            raise ValueError(
                f"mix_token needs out_type='dense' to hand on the box, got out_type={out_type!r}"
            )
        if mix_token and self.num_stages - 1 not in self.out_indices:
            raise ValueError(
                'mix_token hands on the box with the last stage, which out_indices='
                f'{self.out_indices} lacks'
            )
        if not -1 <= frozen_stages <= self.num_stages:
            raise ValueError(
                f'frozen_stages must lie in [-1, {self.num_stages}], got {frozen_stages}'
            )

    def local_attention(self, dim: int, num_heads: int) -> nn.Module:
        """Make the attention of an outlooker; what a variant with another local attention overrides.

        Args:
            dim (int): Channels C.
            num_heads (int): Number of heads.

        Returns:
            nn.Module: From (B, H, W, C) to the same.
        """
        return OutlookAttention(dim, num_heads, **self.outlook_cfg, **self.attn_cfg)

    def _make_stage(self, index: int, drop_path_rate: float) -> nn.Sequential:
        settings = self.arch_settings
        dim, heads = settings['embed_dims'][index], settings['num_heads'][index]
        ratio, depth = settings['mlp_ratios'][index], self.layers[index]
        if settings['outlook'][index]:
            return nn.Sequential(
                *(Outlooker(dim, self.local_attention(dim, heads), ratio) for _ in range(depth))
            )
        first, total = sum(self.layers[:index]), sum(self.layers)
        rates = [drop_path_rate * i / max(total - 1, 1) for i in range(first, first + depth)]
        return nn.Sequential(
            *(LVViTBlock(dim, heads, ratio, drop_path=rate, **self.attn_cfg) for rate in rates)
        )

    def init_weights(self) -> None:
        """Initialise the weights, unless they come from a checkpoint."""
        super().init_weights()
        if not is_checkpoint_init(self.init_cfg):
            trunc_normal_(self.pos_embed, std=0.02)
            if self.post_network is not None:
                trunc_normal_(self.cls_token, std=0.02)

    def _resize_loaded_pos_embed(self, state_dict: StateDict, prefix: str, *args) -> None:
        """Fit the positions of a checkpoint of another image size."""
        key = f'{prefix}pos_embed'
        if key in state_dict and state_dict[key].ndim == 4:
            grid = self.pos_embed.shape[1:3]
            state_dict[key] = resize_grid(state_dict[key], grid, self.interpolate_mode)

    def _freeze_unused(self) -> None:
        """Freeze what only official checkpoints need, lest distributed training wait for it."""
        if self.out_type in ('featmap', 'avg_featmap') and self.post_network is not None:
            self.cls_token.requires_grad_(False)
            self.post_network.eval().requires_grad_(False)
        if not self.final_norm:
            self.norm.eval().requires_grad_(False)

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embed]
        if self.frozen_stages:
            last = self.frozen_stages - 1
            frozen += self.network[: self.stage_positions[last] + 1]
        if len(frozen) > 3:  # the third member of `network` among them
            frozen.append(self.pos_drop)
            self.pos_embed.requires_grad_(False)
        for module in frozen:
            module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> 'VOLO':
        """Set the mode, keeping frozen stages in eval mode."""
        super().train(mode)
        self._freeze_unused()
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
            x, box = self.mix_token.mix(x, self.reduction)
        x = x.permute(0, 2, 3, 1)
        outs = []
        for i, module in enumerate(self.network):
            if i == 2:
                grid = x.shape[1:3]
                x = self.pos_drop(x + resize_grid(self.pos_embed, grid, self.interpolate_mode))
            x = module(x) if isinstance(module, Downsample) else self._run_stage(module, x)
            if i in self.stage_positions:
                stage = self.stage_positions.index(i)
                if stage in self.out_indices:
                    last = stage == self.num_stages - 1
                    outs.append(self._last_output(x, box) if last else self._pool(x))
        return tuple(outs)

    def _run_stage(self, stage: nn.Sequential, x: Tensor) -> Tensor:
        """Run the blocks of a stage on the map (B, H, W, C); transformer blocks take tokens."""
        grid = x.shape[1:3]
        if not isinstance(stage[0], Outlooker):
            x = x.flatten(1, 2)
        for block in stage:
            if self.with_cp and x.requires_grad:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x if x.ndim == 4 else x.unflatten(1, grid)

    def _pool(self, x: Tensor) -> Tensor:
        """Give a map (B, H, W, C) as ``out_type`` asks for."""
        return x.mean((1, 2)) if self.out_type == 'avg_featmap' else x.permute(0, 3, 1, 2)

    def _last_output(self, x: Tensor, box: Box):
        if self.out_type in ('featmap', 'avg_featmap'):
            return self._pool(self.norm(x) if self.final_norm else x)
        cls_token, tokens = self.cls_token.expand(x.shape[0], -1, -1), x.flatten(1, 2)
        for layer in self.post_network:
            cls_token = layer(cls_token, tokens)
        tokens = torch.cat((cls_token, tokens), 1)  # (B, 1 + N, C)
        tokens = self.norm(tokens) if self.final_norm else tokens
        if self.out_type == 'cls_token':
            return tokens[:, 0]
        return [tokens[:, 1:].mT.unflatten(2, x.shape[1:3]), tokens[:, 0], box]

    def get_layer_depth(self, param_name: str, prefix: str = '') -> Tuple[int, int]:
        """Depth of a parameter for layer-wise learning rates.

        A downsample counts with the block that follows it.

        Args:
            param_name (str): Name of the parameter.
            prefix (str): Prefix of the backbone's parameters. Defaults to ''.

        Returns:
            tuple[int, int]: Depth, 0 for stem, positions and class token, and the number of depths.
        """
        num_blocks = sum(self.layers)
        num_depths = num_blocks + self.arch_settings['cls_layers'] + 2
        if not param_name.startswith(prefix):
            return num_depths - 1, num_depths
        part, *rest = param_name[len(prefix) :].split('.')
        if part == 'network':
            position = int(rest[0])
            before = sum(
                depth for p, depth in zip(self.stage_positions, self.layers) if p < position
            )
            inner = int(rest[1]) if position in self.stage_positions else 0
            return before + inner + 1, num_depths
        if part == 'post_network':
            return num_blocks + int(rest[0]) + 1, num_depths
        return (num_depths - 1 if part == 'norm' else 0), num_depths


def resize_grid(grid: Tensor, size: Sequence[int], mode: str = 'bicubic') -> Tensor:
    """Resize positions (1, h, w, C), as the official code does, if they have another size."""
    if tuple(grid.shape[1:3]) == tuple(size):
        return grid
    channels_first = at_least_float32(grid.permute(0, 3, 1, 2))
    resized = F.interpolate(channels_first, tuple(size), mode=mode, align_corners=False)
    return resized.permute(0, 2, 3, 1).to(grid.dtype)
