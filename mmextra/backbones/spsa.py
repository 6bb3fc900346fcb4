"""Simple Parameter-free Self-attention Approximation. arXiv 2307.12018, ICLR 2023 Tiny Papers.

Self-attention without parameters, at a cost linear in the number of tokens: the similarity of tokens enters through the
cross-correlation of their channels alone. The paper has no public code, and its abstract no formula; what is here is
our reading of it.

Registered here: the operator ``SPSA``, ``SPSAPlugin`` and ``SPSABlock`` for the plugin slots of mmdet's and mmseg's
ResNet, and the backbones ``SPSAMobileViT`` and ``SPSAMobileNetV2``.
"""

from typing import Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_activation_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.drop import build_dropout
from mmengine.model import BaseModule
from mmpretrain.models import MobileNetV2, MobileViT
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from torch import Tensor, nn

from mmextra.backbones.plain_vit import PlainViT
from mmextra.engine.arguments import resolve_indices
from mmextra.ops.precision import at_least_float32
from mmextra.registry import MODELS


@MODELS.register_module()
class SPSA(BaseModule):
    r"""Parameter-free attention at linear cost.

    Within each head, with q the tokens x scaled to unit length, attention with the weights
    :math:`e^{q_i \cdot q_j / \tau}` is approximated to first order, :math:`e^z \approx 1 + z`:

    .. math::
        y_i = \frac{\sum_j x_j + M^T q_i / \tau}{N + q_i \cdot \sum_j q_j / \tau}, \qquad M = \sum_j q_j x_j^T

    The weights of a token are not negative and sum to one. The error falls with the square of 1 / tau. Positions do not
    matter: keep a convolution next to it.

    It takes the place of mmpretrain's ``MultiheadAttention``. There is nothing to train and nothing in the state dict.

    Args:
        embed_dims (int, optional): Channels C, to be checked against the heads at once; any C will do otherwise.
            Defaults to None.
        num_heads (int): Heads, a divisor of C. Defaults to 1.
        tau (float): Temperature, at least 1. Defaults to 1.
        mode (str): ``'taylor'``, the above, or ``'softmax'`` for an ablation: softmax over the channels of a head for
            the queries and over the tokens for the keys, without a temperature. Defaults to ``'taylor'``.
        dropout_layer (dict, optional): Layer that the output passes, such as ``dict(type='DropPath', drop_prob=0.1)``.
            Defaults to None.
        init_cfg (dict, optional): Without effect. Defaults to None.

    Raises:
        ValueError: If ``tau`` is less than 1, ``mode`` is unknown, or the channels are no multiple of the heads.
    """

    def __init__(
        self,
        embed_dims: Optional[int] = None,
        num_heads: int = 1,
        tau: float = 1.0,
        mode: str = 'taylor',
        dropout_layer: Optional[dict] = None,
        init_cfg: Optional[dict] = None,
    ) -> None:
        super().__init__(init_cfg)
        if not tau >= 1:
            raise ValueError(f'tau must be at least 1, or weights may be negative; got {tau}')
        if mode not in ('taylor', 'softmax'):
            raise ValueError(f"mode must be 'taylor' or 'softmax', got {mode!r}")
        self.num_heads = num_heads
        self.tau = tau
        self.mode = mode
        self.out_drop = build_dropout(dropout_layer) if dropout_layer else nn.Identity()
        if embed_dims is not None:
            self._check_channels(embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (B, N, C), or the positions of a map (B, C, H, W); the output has the same shape and dtype."""
        if x.ndim not in (3, 4):
            raise ValueError(
                f'SPSA takes tokens (B, N, C) or maps (B, C, H, W), got a tensor of shape {tuple(x.shape)}'
            )
        tokens = x.flatten(2).mT if x.ndim == 4 else x
        self._check_channels(tokens.shape[-1])
        device_type = 'cpu' if x.is_meta else x.device.type  # autocast does not know `meta`
        with torch.autocast(device_type, enabled=False):  # sums over thousands of tokens
            tokens = at_least_float32(tokens)
            heads = tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            if self.mode == 'taylor':
                mixed = taylor_attention(heads, self.tau)  # (B, heads, N, d)
            else:
                mixed = softmax_attention(heads)
        out = self.out_drop(mixed.transpose(1, 2).flatten(2).to(x.dtype))
        return out.mT.unflatten(2, x.shape[2:]) if x.ndim == 4 else out

    def _check_channels(self, channels: int) -> None:
        if channels % self.num_heads:
            raise ValueError(
                f'{channels} channels are no multiple of num_heads={self.num_heads}: change embed_dims (in_channels of '
                'a plugin or block) or num_heads'
            )

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f'num_heads={self.num_heads}, tau={self.tau}, mode={self.mode!r}'


def taylor_attention(x: Tensor, tau: float = 1.0) -> Tensor:
    """First-order attention of tokens (B, heads, N, d) to themselves; see :class:`SPSA`.

    A column of ones beside the values makes numerator and denominator one product.
    """
    values = F.pad(x, (0, 1), value=1.0).flatten(0, 1)  # (B * heads, N, d + 1)
    q = F.normalize(values[..., :-1], dim=-1, eps=1e-6)  # (B * heads, N, d)
    correlation = q.mT @ values / tau  # (B * heads, d, d + 1)
    sums = torch.baddbmm(values.sum(-2, keepdim=True), q, correlation)  # (B * heads, N, d + 1)
    return (sums[..., :-1] / sums[..., -1:]).unflatten(0, x.shape[:2])


def softmax_attention(x: Tensor) -> Tensor:
    """Attention of tokens (B, heads, N, d) to themselves with separate softmaxes of queries and keys."""
    scaled = x * x.shape[-1] ** -0.5
    return scaled.softmax(-1) @ (scaled.softmax(-2).mT @ x)


@MODELS.register_module()
class SPSAPlugin(BaseModule):
    """x + SPSA(x), for the plugin slots of a ResNet.

    Args:
        in_channels (int): Channels C of the map.
        **kwargs: Arguments of :class:`SPSA`.

    Example:
        >>> plugins = [
        ...     dict(
        ...         cfg=dict(type='mmextra.SPSAPlugin', num_heads=8),
        ...         stages=(False, False, True, True),
        ...         position='after_conv2',
        ...     )
        ... ]
        >>> backbone = dict(type='mmdet.ResNet', depth=50, plugins=plugins)
    """

    _abbr_ = 'spsa'

    def __init__(self, in_channels: int, **kwargs) -> None:
        super().__init__()
        self.spsa = SPSA(in_channels, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the positions of a map (B, C, H, W)."""
        return x + self.spsa(x)


@MODELS.register_module()
class SPSABlock(BaseModule):
    r"""Hybrid block: a convolution for what is near, :class:`SPSA` for the whole, and an MLP.

    .. math::
        u &= \mathrm{BN}(\mathrm{DWConv}_{3 \times 3}(x)) \\
        x &\leftarrow x + \mathrm{DropPath}(W \, \mathrm{act}(\mathrm{BN}(u + \mathrm{SPSA}(u)))) \\
        x &\leftarrow x + \mathrm{DropPath}(\mathrm{FFN}(\mathrm{BN}(x)))

    It goes into the plugin slots of a ResNet, too.

    Args:
        in_channels (int): Channels C of the map.
        num_heads (int): See :class:`SPSA`. Defaults to 1.
        tau (float): See :class:`SPSA`. Defaults to 1.
        mode (str): See :class:`SPSA`. Defaults to ``'taylor'``.
        ffn_ratio (float): Hidden channels of the MLP over C. Defaults to 2.
        drop_path_rate (float): Stochastic depth of both branches. Defaults to 0.
        norm_cfg (dict): Defaults to ``dict(type='BN')``.
        act_cfg (dict): Defaults to ``dict(type='SiLU')``.
        init_cfg (dict | list[dict], optional): Defaults to None, torch's own initialisation.
    """

    _abbr_ = 'spsa_block'

    def __init__(
        self,
        in_channels: int,
        num_heads: int = 1,
        tau: float = 1.0,
        mode: str = 'taylor',
        ffn_ratio: float = 2.0,
        drop_path_rate: float = 0.0,
        norm_cfg: dict = dict(type='BN'),
        act_cfg: dict = dict(type='SiLU'),
        init_cfg: Union[dict, list, None] = None,
    ) -> None:
        super().__init__(init_cfg)
        hidden = int(in_channels * ffn_ratio)
        self.local = ConvModule(
            in_channels,
            in_channels,
            3,
            padding=1,
            groups=in_channels,
            norm_cfg=norm_cfg,
            act_cfg=None,
        )
        self.spsa = SPSA(in_channels, num_heads, tau, mode)
        self.proj = nn.Sequential(
            build_norm_layer(norm_cfg, in_channels)[1],
            build_activation_layer(act_cfg),
            nn.Conv2d(in_channels, in_channels, 1),
        )
        self.ffn = nn.Sequential(
            build_norm_layer(norm_cfg, in_channels)[1],
            nn.Conv2d(in_channels, hidden, 1),
            build_activation_layer(act_cfg),
            nn.Conv2d(hidden, in_channels, 1),
        )
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to a map (B, C, H, W)."""
        u = self.local(x)
        x = x + self.drop_path(self.proj(u + self.spsa(u)))
        return x + self.drop_path(self.ffn(x))


@MODELS.register_module()
class SPSAMobileViT(MobileViT):
    """The host's ``MobileViT`` with :class:`SPSA` in the place of every attention.

    The unfolding into groups of positions is kept: SPSA mixes a quarter of the positions at a time.

    Args:
        arch (str | list): ``'small'``, ``'x_small'``, ``'xx_small'``, or a list as the host's class takes it. Defaults
            to ``'small'``.
        spsa (dict, optional): Arguments of :class:`SPSA`. None takes the attention's place with the identity, for an
            ablation. Defaults to ``dict(num_heads=4)``.
        out_indices (int | Sequence[int]): Stages whose map is returned, from 0; the last of five is 4. Defaults to
            ``(4,)``.
        drop_path_rate (float): Stochastic depth of the last transformer layer, rising linearly from 0. Defaults to 0.
        frozen_stages (int): The stem and so many stages are frozen and stay in eval mode. Defaults to -1, none.
        with_cp (bool): Recompute the blocks in the backward pass to save memory. Defaults to False.
        **kwargs: Further arguments of the host's class.

    Raises:
        ValueError: If ``out_indices`` or ``frozen_stages`` names no stage.
    """

    def __init__(
        self,
        arch: Union[str, Sequence[list]] = 'small',
        spsa: Optional[dict] = dict(num_heads=4),
        out_indices: Union[int, Sequence[int]] = (4,),
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(arch, frozen_stages=frozen_stages, **kwargs)
        self.out_indices = list(resolve_indices(out_indices, self.num_stages, 'stages'))
        self.with_cp = with_cp
        layers = [m for m in self.modules() if isinstance(m, TransformerEncoderLayer)]
        for layer, rate in zip(layers, np.linspace(0, drop_path_rate, len(layers)).tolist()):
            drop = dict(type='DropPath', drop_prob=rate)
            layer.attn = (
                nn.Identity()
                if spsa is None
                else SPSA(layer.embed_dims, **{'dropout_layer': drop, **spsa})
            )
            layer.ffn.dropout_layer = build_dropout(drop)
        self._freeze_stages()

    # Only the attributes `with_cp` and `training` are asked for.
    maybe_checkpoint = PlainViT.maybe_checkpoint

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Extract features from images (B, 3, H, W); one map (B, C, H/s, W/s) for each of ``out_indices``."""
        x = self.stem(x)
        outs = []
        for i, blocks in enumerate(self.layers):
            for block in blocks:
                x = self.maybe_checkpoint(block, x)
            if i == len(self.layers) - 1:
                x = self.conv_1x1_exp(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def train(self, mode: bool = True) -> 'SPSAMobileViT':
        """Set the mode; what is frozen stays in eval mode."""
        super().train(mode)
        return self

    def _freeze_stages(self) -> None:
        super()._freeze_stages()
        if self.frozen_stages >= 0:  # the host leaves the stem alone
            self.stem.eval().requires_grad_(False)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> Tuple[int, int]:
        """The depth of a parameter, and the number of depths; 0 is the stem, then each block of a stage is one."""
        blocks = [
            f'layers.{i}.{j}' for i, layer in enumerate(self.layers) for j in range(len(layer))
        ]
        return block_depth(param_name, prefix, ['stem', *blocks])


@MODELS.register_module()
class SPSAMobileNetV2(MobileNetV2):
    """The host's ``MobileNetV2`` with x + SPSA(x) after the depth-wise convolutions of strides 16 and 32.

    There are no parameters more: the host's checkpoints fit, and the other way round.

    Args:
        spsa (dict): Arguments of :class:`SPSA`. Defaults to ``dict(num_heads=8)``.
        with_cp (bool): Recompute the blocks in the backward pass to save memory. Running statistics are updated once
            all the same, unlike in the host's class. Defaults to False.
        **kwargs: Further arguments of the host's class.
    """

    def __init__(self, spsa: dict = dict(num_heads=8), with_cp: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.with_cp = with_cp
        for i in (4, 5, 6, 7):
            for block in getattr(self, f'layer{i}'):
                depthwise = block.conv[-2]
                plugin = SPSAPlugin(depthwise.out_channels, **spsa)
                # Not a module of its own in the sequence, which would renumber the parameters after it.
                depthwise.activate = nn.Sequential(depthwise.activate, plugin)
        self._freeze_stages()

    # Only the attributes `with_cp` and `training` are asked for.
    maybe_checkpoint = PlainViT.maybe_checkpoint

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Extract features from images (B, 3, H, W); one map (B, C, H/s, W/s) for each of ``out_indices``."""
        x = self.conv1(x)
        outs = []
        for i, name in enumerate(self.layers):
            layer = getattr(self, name)
            for block in layer if isinstance(layer, nn.Sequential) else [layer]:
                x = self.maybe_checkpoint(block, x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def train(self, mode: bool = True) -> 'SPSAMobileNetV2':
        """Set the mode; what is frozen stays in eval mode."""
        super().train(mode)
        return self

    def _freeze_stages(self) -> None:
        super()._freeze_stages()
        if self.frozen_stages >= 0:  # the host's stem would go on updating its statistics
            self.conv1.eval()

    def get_layer_depth(self, param_name: str, prefix: str = '') -> Tuple[int, int]:
        """The depth of a parameter, and the number of depths; 0 is the stem, then each block is one."""
        blocks = [
            f'layer{i}.{j}' for i in range(1, 8) for j in range(len(getattr(self, f'layer{i}')))
        ]
        return block_depth(param_name, prefix, ['conv1', *blocks])


def block_depth(param_name: str, prefix: str, blocks: Sequence[str]) -> Tuple[int, int]:
    """Index of the block that a parameter belongs to, and the number of depths; what is in no block comes last."""
    name = param_name.removeprefix(prefix) if param_name.startswith(prefix) else ''
    depths = [i for i, block in enumerate(blocks) if name.startswith(f'{block}.')]
    return depths[0] if depths else len(blocks), len(blocks) + 1
