"""Irregular Patch ViT beside DeiTs of like cost, and beside itself with separate expansions of the branches."""

import torch
import torch.nn.functional as F
from benchmark_case import Case
from mmpretrain.models import VisionTransformer
from torch import nn

from mmextra.backbones.irregular_patch_vit import IrregularPatchEmbed, IrregularPatchViT


def deit(channels, heads):
    arch = dict(
        embed_dims=channels, num_layers=12, num_heads=heads, feedforward_channels=4 * channels
    )
    return VisionTransformer(arch)


class SeparateExpansions(nn.Module):
    """The patch embedding with an expansion of its own for every branch."""

    def __init__(self, embed):
        super().__init__()
        self.embed = embed

    def forward(self, x):
        for stage in self.embed.stages:
            x = stage(x)
        expand = self.embed.expand_conv
        weights = expand.conv.weight.chunk(len(self.embed.branches))
        norms = [t.chunk(len(weights)) for t in (expand.bn.running_mean, expand.bn.running_var)]
        affine = [t.chunk(len(weights)) for t in (expand.bn.weight, expand.bn.bias)]
        patches = []
        for i, branch in enumerate(self.embed.branches):
            y = F.conv2d(x, weights[i])
            statistics = norms[0][i], norms[1][i], affine[0][i], affine[1][i]
            patches.append(
                branch(F.hardswish(F.batch_norm(y, *statistics, training=self.training)))
            )
        return torch.cat([p.flatten(2).mT for p in patches], dim=1)


def cases(device, batch=4):
    def build(make):
        return lambda: (make().to(device), (torch.randn(batch, 3, 224, 224, device=device),))

    found = [
        Case(
            f'IrregularPatchViT-{arch.upper()}, 224, batch {batch}',
            ours=build(lambda arch=arch: IrregularPatchViT(arch)),
            yardstick=build(lambda c=channels, h=heads: deit(c, h)),
            yardstick_name=f'mmpretrain DeiT of {channels} channels',
        )
        for arch, channels, heads in (('s', 64, 1), ('m', 96, 3), ('l', 128, 2))
    ]
    stem = IrregularPatchViT.arch_zoo['m']['stem_channels']
    found.append(
        Case(
            f'patch embedding of M, 224, batch {batch}',
            ours=build(lambda: IrregularPatchEmbed(256, stem)),
            yardstick=build(lambda: SeparateExpansions(IrregularPatchEmbed(256, stem))),
            yardstick_name='the same with separate expansions',
        )
    )
    return found
