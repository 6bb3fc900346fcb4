"""DS-Net beside stock backbones of its size, and its block beside a plain realisation of it."""

import torch
import torch.nn.functional as F
from benchmark_case import Case
from mmpretrain.models import ResNet, VisionTransformer

from mmextra.backbones.dsnet import DSBlock, DSNet


class PlainDSBlock(DSBlock):
    """The block with its attention maps in memory, as the published code has them."""

    def attend(self, q, k, v):
        weights = ((q * self.scale) @ k.mT).softmax(-1)
        if self.training:
            weights = F.dropout(weights, self.attn_drop_rate)
        return (weights @ v).transpose(1, 2).flatten(2)


def plain(arch):
    """DS-Net made of plain blocks."""
    model = DSNet(arch)
    for block in (block for stage in model.stages for block in stage):
        block.__class__ = PlainDSBlock
    return model


def cases(device, batch=4):
    def build(make):
        return lambda: (make().to(device), (torch.randn(batch, 3, 224, 224, device=device),))

    return [
        Case(
            f'DS-Net-S, 224, batch {batch}',
            ours=build(lambda: DSNet('s')),
            yardstick=build(lambda: VisionTransformer('deit-small')),
            yardstick_name='mmpretrain DeiT-S',
            reference=build(lambda: plain('s')),
        ),
        Case(
            f'DS-Net-T, 224, batch {batch}',
            ours=build(lambda: DSNet('t')),
            yardstick=build(lambda: ResNet(18)),
            yardstick_name='mmpretrain ResNet-18',
            reference=build(lambda: plain('t')),
        ),
    ]
