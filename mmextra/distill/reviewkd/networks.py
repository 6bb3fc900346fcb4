"""The classifiers of ReviewKD's CIFAR experiments, and the key layout of its teachers."""

from typing import Sequence

from mmpretrain.models.backbones import ResNet_CIFAR
from mmpretrain.models.backbones.resnet import BasicBlock

from mmextra.engine.checkpoint import StateDict, register_layout
from mmextra.registry import MODELS


@MODELS.register_module()
class CIFARResNet(ResNet_CIFAR):
    """ResNet of three stages for 32x32 images, of depth 6n + 2.

    The stock ``ResNet_CIFAR`` has the stages of the ImageNet networks. R20, R56 and R110 have
    widths 16, 32, 64 and a stem of 16; R8x4 and R32x4 have four times the widths,
    ``base_channels=64``, and a stem of ``stem_channels=32``.

    Args:
        depth (int): One of 8, 14, 20, 32, 44, 56, 110.
        stem_channels (int): Channels of the stem. Defaults to 16.
        base_channels (int): Channels of the first stage. Defaults to 16.
        out_indices (Sequence[int]): Stages to return. Defaults to (2, ), the last one.
        **kwargs: See the stock ``ResNet``. ``zero_init_residual`` is off by default.
    """

    arch_settings = {
        depth: (BasicBlock, (depth // 6,) * 3) for depth in (8, 14, 20, 32, 44, 56, 110)
    }

    def __init__(
        self,
        depth: int,
        stem_channels: int = 16,
        base_channels: int = 16,
        out_indices: Sequence[int] = (2,),
        zero_init_residual: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(
            depth,
            stem_channels=stem_channels,
            base_channels=base_channels,
            num_stages=3,
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            out_indices=out_indices,
            zero_init_residual=zero_init_residual,
            **kwargs,
        )


@register_layout('reviewkd')
def reviewkd_layout(state: StateDict) -> StateDict:
    """ResNet classifiers of torchvision, and of the CIFAR code: those that ReviewKD has as teachers."""
    return {
        f'head.{key}' if key.startswith('fc.') else f'backbone.{key}': value
        for key, value in state.items()
    }
