"""SPSA beside the host's attention, as an operator on maps of several sizes and inside MobileViT."""

import torch
import torch.nn.functional as F
from benchmark_case import Case
from mmpretrain.models import MobileViT
from mmpretrain.models.utils import MultiheadAttention
from torch import nn

from mmextra.backbones.spsa import SPSA, SPSAMobileViT


class ExactAttention(nn.Module):
    """The parameter-free attention that SPSA approximates."""

    def __init__(self, num_heads):
        super().__init__()
        self.num_heads = num_heads

    def forward(self, x):
        x = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        q = F.normalize(x, dim=-1, eps=1e-6)
        return F.scaled_dot_product_attention(q, q, x, scale=1.0).transpose(1, 2).flatten(2)


def cases(device):
    def backbone(cls):
        return lambda: (cls('small').to(device), (torch.randn(4, 3, 224, 224, device=device),))

    def operator(make, side):
        def build():
            tokens = torch.randn(1, side * side, 96, device=device, requires_grad=True)
            return make().to(device), (tokens,)

        return build

    found = [
        Case(
            'SPSA-MobileViT-S, 224, batch 4',
            ours=backbone(SPSAMobileViT),
            yardstick=backbone(MobileViT),
            yardstick_name='mmpretrain MobileViT-S',
        )
    ]
    for side in (16, 32, 64, 128):
        found.append(
            Case(
                f'SPSA, {side}x{side}x96, 4 heads',
                ours=operator(lambda: SPSA(num_heads=4), side),
                yardstick=operator(lambda: MultiheadAttention(96, 4), side),
                yardstick_name='mmpretrain MultiheadAttention',
                reference=operator(lambda: ExactAttention(4), side),
                reference_name='what it approximates, exactly',
                backward=side < 128,
            )
        )
    return found
