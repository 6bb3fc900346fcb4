"""k-NN attention beside dense attention, which is faster: what is gained is accuracy. Then two ways to select."""

import torch
from benchmark_case import Case
from mmpretrain.models import VisionTransformer
from torch import nn

from mmextra.backbones.kvt import KNNVisionTransformer, knn_attention


class Core(nn.Module):
    """An attention without parameters: softmax(q k^T / sqrt(d)) v for some softmax."""

    def __init__(self, attend) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, q, k, v):
        return self.attend(q, k, v)


def dense(q, k, v):
    return ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1) @ v


def masked(q, k, v, topk=100):
    """A mask, a map of -inf and a third map that joins them, as the authors write it."""
    logits = (q @ k.mT) * q.shape[-1] ** -0.5
    chosen = torch.zeros_like(logits).scatter_(-1, logits.topk(topk).indices, 1.0)
    logits = torch.where(chosen > 0, logits, torch.full_like(logits, -torch.inf))
    return logits.softmax(-1) @ v


def images(device, batch=4):
    return (torch.randn(batch, 3, 224, 224, device=device),)


def heads(device, num, batch=4):
    return tuple(torch.randn(batch, 6, num, 64, device=device, requires_grad=True) for _ in 'qkv')


def core(attend, device, num):
    return lambda: (Core(attend), heads(device, num))


def cases(device):
    rows = [
        Case(
            'DeiT-S with k-NN attention, 224, batch 4',
            ours=lambda: (KNNVisionTransformer('deit-small').to(device), images(device)),
            yardstick=lambda: (VisionTransformer('deit-small').to(device), images(device)),
            yardstick_name='mmpretrain DeiT-S',
        )
    ]
    for num in (197, 785):
        rows.append(
            Case(
                f'k-NN attention alone, 100 of {num} keys, 6 heads, batch 4',
                ours=core(knn_attention, device, num),
                yardstick=core(dense, device, num),
                yardstick_name='dense attention with its maps',
                reference=core(masked, device, num),
                reference_name='selection by mask, where and full_like',
            )
        )
    return rows
