"""Refiner-S beside DeiT-S, and its distributed local attention beside the same layers one by one."""

import torch
import torch.nn.functional as F
from benchmark_case import Case
from mmpretrain.models import VisionTransformer
from torch import nn

from mmextra.backbones.refiner import DistributedLocalAttention, RefinerViT


class OneByOne(DistributedLocalAttention):
    """Convolution, batch norm and ReLU6 in turn, as the paper draws them."""

    def forward(self, attn):
        hidden = F.relu6(self.bn1(self.conv_exp(attn)))
        hidden = F.relu6(self.bn2(self.depth_sep_conv(hidden)))
        return self.bn3(self.conv_pro(hidden)) + attn


def one_by_one(model: nn.Module) -> nn.Module:
    """The same model with the layers one by one."""
    for module in model.modules():
        if isinstance(module, DistributedLocalAttention):
            module.__class__ = OneByOne
    return model


def images(device, batch=4):
    return (torch.randn(batch, 3, 224, 224, device=device),)


def maps(device, batch=4):
    return (torch.randn(batch, 12, 197, 197, device=device).softmax(-1),)


def cases(device):
    return [
        Case(
            'Refiner-S, 224, batch 4',
            ours=lambda: (RefinerViT('s').to(device), images(device)),
            yardstick=lambda: (VisionTransformer('deit-small').to(device), images(device)),
            yardstick_name='mmpretrain DeiT-S',
            reference=lambda: (one_by_one(RefinerViT('s')).to(device), images(device)),
            reference_name='Refiner-S with convolutions and batch norms one by one',
        ),
        Case(
            'distributed local attention, 12 heads, 197 x 197, batch 4',
            ours=lambda: (DistributedLocalAttention(12).to(device), maps(device)),
            yardstick=lambda: (one_by_one(DistributedLocalAttention(12)).to(device), maps(device)),
            yardstick_name='the same layers one by one',
        ),
    ]
