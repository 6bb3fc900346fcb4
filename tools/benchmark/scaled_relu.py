"""Scaled ReLU conv-stem: DeiT-S with it beside the stock DeiT-S, and the stem beside its plain realisation."""

import torch
from benchmark_case import Case
from mmpretrain.models import VisionTransformer
from torch import nn

from mmextra.backbones.scaled_relu import ScaledReLUConvStem


def images(device, batch=4):
    return (torch.randn(batch, 3, 224, 224, device=device),)


def deit(device, conv_type='Conv2d'):
    return VisionTransformer('deit-small', patch_cfg=dict(conv_type=conv_type)).to(device), images(
        device
    )


def plain_stem(channels=384, hidden=64, patch=16):
    """The stem as VOLO writes it."""
    layers = [
        nn.Conv2d(3, hidden, 7, 2, 3, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
    ]
    for _ in range(2):
        layers += [nn.Conv2d(hidden, hidden, 3, 1, 1, bias=False), nn.BatchNorm2d(hidden)]
        layers += [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(hidden, channels, patch // 2, patch // 2))


def cases(device):
    return [
        Case(
            'DeiT-S with conv-stem, 224, batch 4',
            ours=lambda: deit(device, 'mmextra.ScaledReLUConvStem'),
            yardstick=lambda: deit(device),
            yardstick_name='mmpretrain DeiT-S',
        ),
        Case(
            'conv-stem alone, 224, batch 4',
            ours=lambda: (ScaledReLUConvStem(3, 384, 16, 16).to(device), images(device)),
            yardstick=lambda: (plain_stem().to(device), images(device)),
            yardstick_name='the same layers in torch.nn.Sequential',
        ),
    ]
