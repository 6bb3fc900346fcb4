"""Exploring Plain Vision Transformer Backbones for Object Detection. arXiv 2203.16527, section 3.

Detectors and segmentors want maps of several strides; an isotropic transformer has but one. Its last
map alone makes all of them.

Registered here: ``SimpleFeaturePyramid``.
"""

import math
from typing import Optional, Sequence, Tuple, Union

import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmextra.registry import MODELS


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Neck that resamples the last map of a backbone to several strides (section 3, "Backbone adaptation").

    A scale of 2 is a deconvolution of stride 2, a scale of 4 two of them with norm and GELU in between, each halving
    the channels; a scale of 1/2 is a max-pooling of stride 2. A 1x1 and a 3x3 convolution, each with a norm, follow.

    Args:
        in_channels (int): Channels of the map.
        out_channels (int): Channels of every output.
        num_outs (int): Number of outputs. Those beyond ``scales`` are the last one, subsampled by 2 again and again.
            Defaults to 5.
        scales (Sequence[float]): Size of each output relative to the map, powers of 2. For a map of stride 16 the
            default, ``(4.0, 2.0, 1.0, 0.5)``, gives strides 4, 8, 16 and 32.
        norm_cfg (dict, optional): Norm after each convolution; without one they have a bias. Defaults to
            ``dict(type='mmpretrain.LN2d')``, a layer norm over the channels of each position.
        init_cfg (dict | list[dict], optional): Defaults to None, torch's own initialisation.

    Raises:
        ValueError: If there is no scale, or one is no power of 2 or needs more channels than there are, or if
            ``num_outs`` is less than the number of scales.

    Example:
        >>> neck = dict(type='mmextra.SimpleFeaturePyramid', in_channels=768, out_channels=256)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_outs: int = 5,
        scales: Sequence[float] = (4.0, 2.0, 1.0, 0.5),
        norm_cfg: Optional[dict] = dict(type='mmpretrain.LN2d'),
        init_cfg: Union[dict, list, None] = None,
    ) -> None:
        super().__init__(init_cfg)
        if not scales:
            raise ValueError('scales must name at least one scale')
        if num_outs < len(scales):
            raise ValueError(
                f'num_outs must be at least the number of scales, {len(scales)}, got {num_outs}'
            )
        for scale in scales:
            if scale <= 0 or not math.log2(scale).is_integer() or scale > in_channels:
                raise ValueError(
                    f'scales must be powers of 2 up to the {in_channels} channels of the map, in_channels; got {scale}'
                )
        self.num_outs = num_outs
        self.levels = nn.ModuleList(
            nn.Sequential(
                *resampling(in_channels, scale, norm_cfg),
                ConvModule(
                    in_channels // max(int(scale), 1),
                    out_channels,
                    1,
                    norm_cfg=norm_cfg,
                    act_cfg=None,
                ),
                ConvModule(
                    out_channels, out_channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=None
                ),
            )
            for scale in scales
        )

    def forward(self, inputs: Tuple[Tensor, ...]) -> Tuple[Tensor, ...]:
        """Make the pyramid.

        Args:
            inputs (tuple[Tensor]): Maps of the backbone; only the last one, (B, in_channels, H, W), is used.

        Returns:
            tuple[Tensor]: ``num_outs`` maps (B, out_channels, scale * H, scale * W); sizes are rounded up.
        """
        outs = [level(inputs[-1]) for level in self.levels]
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)


def resampling(channels: int, scale: float, norm_cfg: Optional[dict]) -> list:
    """Layers that scale a map of so many channels by a power of 2, halving the channels at each doubling."""
    steps = int(math.log2(scale))
    layers = [nn.MaxPool2d(2, ceil_mode=True) for _ in range(-steps)]
    for i in range(steps):
        if i:
            layers += [build_norm_layer(norm_cfg, channels)[1]] if norm_cfg else []
            layers.append(nn.GELU())
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, stride=2))
        channels //= 2
    return layers
