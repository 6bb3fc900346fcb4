"""What the papers of this wing that change a plain vision transformer have in common. Nothing is registered here."""

import math
from contextlib import contextmanager, nullcontext
from typing import Any, Callable, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.transformer import FFN, PatchEmbed
from mmengine.model import BaseModule, ModuleList
from mmengine.model.weight_init import trunc_normal_
from mmengine.utils import to_2tuple
from mmpretrain.models import VisionTransformer
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.models.utils import build_norm_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmextra.engine.checkpoint import StateDict, is_checkpoint_init
from mmextra.ops.precision import at_least_float32

# Called with the index of a layer and its drop path rate; returns the layer.
MakeLayer = Callable[[int, float], nn.Module]


class ConvStem(PatchEmbed):
    """Patch embedding that convolves at half the resolution before it cuts the image into patches.

    A 7x7 convolution of stride 2 and 3x3 convolutions of stride 1, each followed by batch norm and ReLU, then a
    projection of patches of half the size. Images are padded to whole patches, at the right and the bottom.

    Args:
        in_channels (int): Channels of the image.
        widths (Sequence[int]): Channels of each convolution before the projection.
        embed_dims (int): Channels C of the tokens.
        patch_size (int): Side P of a patch in pixels, even.
        img_size (int | tuple[int]): The usual size of the image in pixels, (height, width).

    Raises:
        ValueError: If ``patch_size`` is odd.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        embed_dims: int,
        patch_size: int,
        img_size: Union[int, Tuple[int, int]],
    ) -> None:
        if patch_size % 2:
            raise ValueError(f'patch_size must be even for a stem of stride 2, got {patch_size}')
        half = patch_size // 2
        super().__init__(widths[-1], embed_dims, kernel_size=half, stride=half, padding=0)
        self.patch_size = patch_size
        self.init_input_size = to_2tuple(img_size)
        self.init_out_size = tuple(-(-side // patch_size) for side in self.init_input_size)
        convs = [
            ConvModule(
                previous,
                width,
                3 if i else 7,
                stride=1 if i else 2,
                padding=1 if i else 3,
                norm_cfg=dict(type='BN'),
            )
            for i, (previous, width) in enumerate(zip((in_channels, *widths), widths))
        ]
        self.stem = nn.Sequential(*convs)

    def forward(self, x: Tensor) -> Tuple[Tensor, Tuple[int, int]]:
        """Embed images.

        Args:
            x (Tensor): (B, in_channels, H, W).

        Returns:
            tuple: The tokens (B, N, C), row by row, and their grid (H/P, W/P), rounded up.
        """
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.patch_size, 0, -height % self.patch_size))
        # The large maps convolve faster with the channels last, and the tokens come out contiguous.
        x = x.contiguous(memory_format=torch.channels_last)
        for layer in self.stem:
            x = layer.activate(conv_norm(x, layer.conv, layer.norm))  # (B, width, H/2, W/2)
        return super().forward(x)


class ScaledResidualBlock(BaseModule):
    r"""Transformer block whose attention hands out its map, with residual branches scaled by a constant.

    For f the attention, then the MLP:

    .. math:: x \leftarrow x + \mathrm{DropPath}(f(\mathrm{LN}(\rho x))) / \rho

    The factor inside is exactly a larger epsilon of the norm: LN(rho x; eps) = LN(x; eps / rho^2).

    Args:
        attn (nn.Module): Called as ``attn(x, *state)``; returns the branch (B, N, C) and what the block hands on.
        embed_dims (int): Channels C.
        feedforward_channels (int): Hidden channels of the MLP.
        residual_scale (float): The constant rho, positive. Defaults to 1.
        drop_rate (float): Dropout in the MLP. Defaults to 0.
        drop_path_rate (float): Stochastic depth of either branch. Defaults to 0.
        layer_scale_init_value (float): Initial value of a learned scale of each channel of the MLP's output; 0 for
            none. Defaults to 0.
        norm_cfg (dict): Norm before each branch. Defaults to ``dict(type='LN', eps=1e-6)``.

    Raises:
        ValueError: If ``residual_scale`` is not positive.
    """

    def __init__(
        self,
        attn: nn.Module,
        embed_dims: int,
        feedforward_channels: int,
        residual_scale: float = 1.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 0.0,
        norm_cfg: dict = dict(type='LN', eps=1e-6),
    ) -> None:
        super().__init__()
        if not residual_scale > 0:
            raise ValueError(f'residual_scale must be positive, got {residual_scale}')
        norm_cfg = {**norm_cfg, 'eps': norm_cfg.get('eps', 1e-5) / residual_scale**2}
        self.residual_scale = residual_scale
        self.ln1 = build_norm_layer(norm_cfg, embed_dims)
        self.attn = attn
        self.drop_path = DropPath(drop_path_rate)
        self.ln2 = build_norm_layer(norm_cfg, embed_dims)
        self.ffn = FFN(
            embed_dims,
            feedforward_channels,
            act_cfg=dict(type='GELU'),
            ffn_drop=drop_rate,
            dropout_layer=dict(type='DropPath', drop_prob=drop_path_rate),
            add_identity=False,
            layer_scale_init_value=layer_scale_init_value,
        )

    def forward(self, x: Tensor, *state: Any) -> Tuple[Tensor, Any]:
        """Apply both branches to tokens (B, N, C); return them and what the attention hands on."""
        branch, handed_on = self.attn(self.ln1(x), *state)
        x = torch.add(x, self.drop_path(branch), alpha=1 / self.residual_scale)
        x = torch.add(x, self.ffn(self.ln2(x)), alpha=1 / self.residual_scale)
        return x, handed_on


class PlainViT(VisionTransformer):
    """The host's ``VisionTransformer`` with what its subclasses here need besides.

    That is: layers of one's own, a convolutional stem, activation checkpointing, frozen stages that stay in eval mode,
    official checkpoints as ``init_cfg``, and a state that each layer may hand to the next one.

    Args:
        arch (str | dict): A name in ``arch_zoo``, or a dict with at least the keys ``embed_dims`` (int), ``num_layers``
            (int), ``num_heads`` (int) and ``feedforward_channels`` (int).
        img_size (int | tuple[int]): The usual size of the image in pixels. Defaults to 224.
        patch_size (int): Side of a patch in pixels. Defaults to 16.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (int | Sequence[int]): Layers whose output is returned. Defaults to -1, the last one.
        drop_path_rate (float): Stochastic depth of the last layer, rising linearly from 0. Defaults to 0.
        frozen_stages (int): The stem and so many layers are frozen and stay in eval mode. Defaults to -1, none.
        with_cp (bool): Recompute the layers in the backward pass to save memory. Defaults to False.
        stem_widths (Sequence[int]): Widths of a :class:`ConvStem`. Defaults to ``()``, a plain patch embedding.
        make_layer (Callable, optional): Makes the layer of a given index and drop path rate. Defaults to None, the
            host's layers.
        init_cfg (dict | list[dict], optional): How to initialise, besides positions and class token. Defaults to None.
        **kwargs: Further arguments of the host's class.

    Raises:
        ValueError: If ``arch``, ``out_indices`` or ``frozen_stages`` is not what the above says, or an argument of the
            host's would have no effect.
    """

    ARCH_OPTIONS: Tuple[str, ...] = ()  # keys that a dict for ``arch`` may have besides
    pos_align_corners = False  # of the interpolation of positions

    def __init__(
        self,
        arch: Union[str, dict],
        img_size: Union[int, Tuple[int, int]] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        out_indices: Union[int, Sequence[int]] = -1,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        stem_widths: Sequence[int] = (),
        make_layer: Optional[MakeLayer] = None,
        init_cfg: Union[dict, list, None] = None,
        **kwargs,
    ) -> None:
        settings = self.settings_of(arch)
        num_layers = settings['num_layers']
        out_indices = [out_indices] if isinstance(out_indices, int) else list(out_indices)
        if not all(-num_layers <= i < num_layers for i in out_indices):
            raise ValueError(
                f'out_indices must lie in [-{num_layers}, {num_layers}): {out_indices}'
            )
        if not -1 <= frozen_stages <= num_layers:
            raise ValueError(f'frozen_stages must lie in [-1, {num_layers}], got {frozen_stages}')
        unused = {'layer_cfgs', 'layer_scale_init_value'} if make_layer else set()
        unused |= {'patch_cfg'} if stem_widths else set()
        if unused & set(kwargs):
            raise ValueError(
                f'{type(self).__name__} makes its own layers and stem, for which {sorted(unused & set(kwargs))} would '
                'mean nothing: take it out'
            )
        super().__init__(
            # Without layers the host's class makes all the rest.
            {**settings, 'num_layers': 0} if make_layer else settings,
            img_size,
            patch_size,
            in_channels,
            out_indices=0,
            drop_path_rate=drop_path_rate,
            init_cfg=init_cfg,
            **kwargs,
        )
        self.arch_settings = settings
        self.num_layers = num_layers
        self.out_indices = [i % num_layers for i in out_indices]
        self.with_cp = with_cp
        if make_layer:
            rates = np.linspace(0, drop_path_rate, num_layers).tolist()
            self.layers = ModuleList(make_layer(i, rate) for i, rate in enumerate(rates))
        for module in self.layers.modules():  # torch.compile breaks at the host's rates, numpy's
            if isinstance(module, DropPath):
                module.drop_prob = float(module.drop_prob)
        if stem_widths:
            self.patch_embed = ConvStem(
                in_channels, stem_widths, self.embed_dims, patch_size, img_size
            )
        self.patch_resolution = self.patch_embed.init_out_size
        self.frozen_stages = frozen_stages
        if frozen_stages >= 0:
            self._freeze_stages()

    @classmethod
    def settings_of(cls, arch: Union[str, Mapping]) -> dict:
        """The settings that a name or a dict stands for."""
        if isinstance(arch, str):
            if arch.lower() not in cls.arch_zoo:
                raise ValueError(f'arch {arch!r} is unknown, choose from {sorted(cls.arch_zoo)}')
            return dict(cls.arch_zoo[arch.lower()])
        needed = {'embed_dims', 'num_layers', 'num_heads', 'feedforward_channels'}
        if needed - set(arch):
            raise ValueError(f'arch lacks {sorted(needed - set(arch))}; given: {sorted(arch)}')
        unknown = set(arch) - needed - set(cls.ARCH_OPTIONS)
        if unknown:
            raise ValueError(
                f'arch has unknown {sorted(unknown)}; known are {sorted(needed | set(cls.ARCH_OPTIONS))}'
            )
        if arch['embed_dims'] % arch['num_heads']:
            raise ValueError(
                f'embed_dims={arch["embed_dims"]} is no multiple of num_heads={arch["num_heads"]}'
            )
        return dict(arch)

    def init_weights(self) -> None:
        """Initialise the weights, unless ``init_cfg`` loads a checkpoint."""
        if is_checkpoint_init(self.init_cfg):
            BaseModule.init_weights(self)
            return
        super().init_weights()
        if self.cls_token is not None:
            trunc_normal_(self.cls_token, std=0.02)

    def train(self, mode: bool = True) -> 'PlainViT':
        """Set the mode; what is frozen stays in eval mode."""
        BaseBackbone.train(self, mode)
        if self.frozen_stages >= 0:
            self._freeze_stages()
        return self

    def forward(self, x: Tensor) -> tuple:
        """Extract features.

        Args:
            x (Tensor): Images (B, in_channels, H, W) of any size.

        Returns:
            tuple[Tensor]: For each of ``out_indices``, in the order of the layers: (B, N, C) for ``out_type='raw'``,
            (B, C) for ``'cls_token'`` and ``'avg_featmap'``, (B, C, H/P, W/P) for ``'featmap'``.
        """
        x, grid = self.patch_embed(x)
        tokens = self.run_layers(self.add_positions(x, grid))
        return tuple(self._format_output(x, grid) for x in tokens)

    def run_layers(self, x: Tensor) -> List[Tensor]:
        """Run tokens (B, N, C) through the layers; return those of each of ``out_indices``."""
        state, outs = None, []
        for i in range(self.num_layers):
            x, state = self.run_layer(i, x, state)
            if i == self.num_layers - 1 and self.final_norm:
                x = self.ln1(x)
            if i in self.out_indices:
                outs.append(x)
        return outs

    def add_positions(self, x: Tensor, grid: Tuple[int, int]) -> Tensor:
        """Put the class token first, and add the positions to tokens (B, H*W, C) of an (H, W) grid."""
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = x + self.resize_positions(self.pos_embed, self.patch_resolution, grid)
        return self.pre_norm(self.drop_after_pos(x))

    def resize_positions(
        self, pos_embed: Tensor, source: Tuple[int, int], target: Tuple[int, int]
    ) -> Tensor:
        """Resize position embeddings (1, N, C) from one grid of patches to another."""
        return resize_tokens(
            pos_embed,
            source,
            target,
            self.interpolate_mode,
            self.num_extra_tokens,
            self.pos_align_corners,
        )

    def _prepare_pos_embed(self, state_dict: StateDict, prefix: str, *args, **kwargs) -> None:
        """Fit the positions of a checkpoint with another, square, grid or with a class token before it is loaded."""
        name = f'{prefix}pos_embed'
        if name not in state_dict:
            return
        if self.cls_token is None and f'{prefix}cls_token' in state_dict:
            state_dict[name] = state_dict[name][:, 1:]
        positions = state_dict[name]
        if positions.shape == self.pos_embed.shape:
            return
        patches = positions.shape[1] - self.num_extra_tokens
        side = math.isqrt(max(patches, 0))
        if side**2 != patches:
            raise ValueError(
                f'{name} of the checkpoint has {patches} patches, this model {self.patch_resolution}: only a square '
                'grid can be resized; give the model the img_size of the checkpoint'
            )
        state_dict[name] = self.resize_positions(positions, (side, side), self.patch_resolution)

    def run_layer(self, index: int, x: Tensor, state: Any) -> Tuple[Tensor, Any]:
        """Run one layer on tokens (B, N, C), with the state that the previous layer handed on (None at first)."""
        return self.maybe_checkpoint(self.layers[index], x), state

    def maybe_checkpoint(self, layer: nn.Module, *args: Any) -> Any:
        """Call a layer, so that the backward pass recomputes it if ``with_cp``."""
        if not (self.with_cp and self.training and torch.is_grad_enabled()):
            return layer(*args)
        return checkpoint(
            layer,
            *args,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), kept_statistics(layer)),
        )


def resize_tokens(
    x: Tensor,
    source: Tuple[int, int],
    target: Tuple[int, int],
    mode: str = 'bicubic',
    num_extra_tokens: int = 0,
    align_corners: bool = False,
) -> Tensor:
    """Resize what is learned for the tokens of a grid; as the host does, but in double precision where ``x`` is.

    Args:
        x (Tensor): (1, N, C): extra tokens, then the grid's, row by row.
        source, target (tuple[int]): Rows and columns, before and after.
        mode (str): How to interpolate. Defaults to ``'bicubic'``.
        num_extra_tokens (int): Tokens before the grid's, which stay as they are. Defaults to 0.
        align_corners (bool): Whether the corners of the grid stay in their places. Defaults to False.

    Returns:
        Tensor: (1, N, C) for the target.
    """
    if tuple(source) == tuple(target):
        return x
    extra, grid = x.tensor_split([num_extra_tokens], dim=1)
    grid = at_least_float32(grid).mT.unflatten(2, tuple(source))
    grid = F.interpolate(grid, tuple(target), mode=mode, align_corners=align_corners)
    return torch.cat((extra, grid.flatten(2).mT.to(x.dtype)), dim=1)


def norm_affine(
    norm: nn.BatchNorm2d, mean: Optional[Tensor] = None, var: Optional[Tensor] = None
) -> Tuple[Tensor, Tensor]:
    """Gain and shift (C) of a batch norm: ``norm(x) = gain * x + shift``.

    Args:
        norm (nn.BatchNorm2d): The norm.
        mean, var (Tensor, optional): Statistics (C). Defaults to None, the running ones.
    """
    mean = norm.running_mean if mean is None else mean
    var = norm.running_var if var is None else var
    gain = norm.weight * (var + norm.eps).rsqrt()
    return gain, norm.bias - gain * mean


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """Convolution without bias and norm: one convolution, where that is a batch norm in eval mode."""
    if norm.training or not isinstance(norm, nn.BatchNorm2d):
        return norm(conv(x))
    gain, shift = norm_affine(norm)
    weight = conv.weight * gain[:, None, None, None]
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


def mixed_statistics(
    norm: nn.BatchNorm2d, x: Tensor, weight: Tensor, bias: Optional[Tensor] = None
) -> Tuple[Tensor, Tensor]:
    """Batch statistics of ``weight @ x + bias`` from the moments of ``x``, without computing it.

    They are those of a 1x1 convolution of a few attention maps. In single precision this is exact enough where the
    mean of ``x`` is not large against the square root of the norm's epsilon, as for attention weights. The running
    statistics of the norm are updated.

    Args:
        norm (nn.BatchNorm2d): The norm that follows on the convolution.
        x (Tensor): Maps (B, C, L).
        weight (Tensor): (D, C).
        bias (Tensor, optional): (D). Defaults to None.

    Returns:
        tuple: Mean and biased variance (D), at least in single precision.
    """
    with torch.autocast(x.device.type, enabled=False):
        if x.dtype in (torch.float16, torch.bfloat16):
            x, weight = x.float(), weight.float()
        count = x.shape[0] * x.shape[2]
        first = x.mean((0, 2))
        moment = torch.bmm(x, x.detach().mT).sum(0) / count  # (C, C)
        moment = 2 * moment - moment.detach()  # its gradient is symmetric: one half of it, twice
        mean = weight @ first if bias is None else weight @ first + bias
        var = ((weight @ (moment - torch.outer(first, first))) * weight).sum(1)
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        unbiased = var * (count / max(count - 1, 1))
        norm.running_mean.lerp_(mean.to(norm.running_mean), norm.momentum)
        norm.running_var.lerp_(unbiased.to(norm.running_var), norm.momentum)
    return mean, var


@contextmanager
def kept_statistics(module: nn.Module) -> Iterator[None]:
    """Keep a recomputation from updating the running statistics of batch norms a second time."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
            if norm.track_running_stats:
                norm.num_batches_tracked -= 1


def deit_keys(state: StateDict, rename: Optional[Mapping[str, str]] = None) -> StateDict:
    """Map the flat keys that DeiT and its descendants share to those of an mm checkpoint of a classifier.

    Args:
        state (dict): Keys ``cls_token``, ``pos_embed``, ``patch_embed.*``, ``blocks.{i}.{norm1,attn,norm2,mlp}.*``,
            ``norm``, ``head``, in distilled models ``dist_token`` and ``head_dist``.
        rename (Mapping, optional): Further fragments of keys and their replacements. Defaults to None.

    Returns:
        dict: Keys ``backbone.*`` and ``head.layers.*``.
    """
    fragments = {
        'blocks.': 'layers.',
        '.norm1.': '.ln1.',
        '.norm2.': '.ln2.',
        '.mlp.fc1.': '.ffn.layers.0.0.',
        '.mlp.fc2.': '.ffn.layers.1.',
        'patch_embed.proj.': 'patch_embed.projection.',
        **(rename or {}),
    }
    mapped = {}
    for key, value in state.items():
        for old, new in fragments.items():
            key = key.replace(old, new)
        if key.startswith('norm.'):
            key = key.replace('norm.', 'ln1.', 1)
        of_head = key.startswith(('head.', 'head_dist.', 'pre_logits.'))
        mapped[f'head.layers.{key}' if of_head else f'backbone.{key}'] = value
    return mapped


# The authors' keys of a convolutional stem: conv1, bn1, conv2, ...
STEM_KEYS = {
    f'patch_embed.{kind}{i + 1}.': f'patch_embed.stem.{i}.{kind}.'
    for i in range(3)
    for kind in ('conv', 'bn')
}
