"""ELSA-Swin beside Swin, and the operation beside a realisation that unfolds the values."""

import torch
import torch.nn.functional as F
from benchmark_case import Case
from mmpretrain.models import SwinTransformer
from torch import nn

from mmextra.backbones.elsa import ELSAVOLO, ELSASwin, elsa_op
from mmextra.backbones.volo import VOLO


class Operation(nn.Module):
    """The operation alone, lambda 0 and gamma 1."""

    def __init__(self, channels: int, heads: int, kernel_size: int = 7) -> None:
        super().__init__()
        self.heads, self.kernel_size = heads, kernel_size
        self.ghost_add = nn.Parameter(0.02 * torch.randn(1, channels, kernel_size, kernel_size))

    def forward(self, v, attn):
        return elsa_op(v, None, self.ghost_add, attn, 0, 1, self.kernel_size)


class UnfoldedOperation(Operation):
    """A filter for each channel and pixel, on unfolded values, as on the CPU path of the released code."""

    def forward(self, v, attn):
        (batch, channels, height, width), taps = v.shape, self.kernel_size**2
        unfolded = F.unfold(v, self.kernel_size, padding=self.kernel_size // 2)
        unfolded = unfolded.view(batch, self.heads, -1, taps, height, width)
        ghost = self.ghost_add.view(1, self.heads, -1, taps, 1, 1)
        filters = attn.view(batch, self.heads, 1, taps, height, width) + ghost
        return (filters * unfolded).sum(3).view(batch, channels, height, width)


def images(device, batch=4):
    return (torch.randn(batch, 3, 224, 224, device=device),)


def maps(device, channels=192, heads=6, side=28, kernel_size=7):
    v = torch.randn(1, channels, side, side, device=device, requires_grad=True)
    attn = torch.rand(1, heads * kernel_size**2, side, side, device=device, requires_grad=True)
    return v.contiguous(memory_format=torch.channels_last), attn


def cases(device):
    return [
        Case(
            'ELSA operation, 192 channels, 28x28, kernel 7',
            ours=lambda: (Operation(192, 6).to(device), maps(device)),
            yardstick=lambda: (UnfoldedOperation(192, 6).to(device), maps(device)),
            yardstick_name='unfolding the values',
        ),
        Case(
            'ELSA-Swin-T, 224, batch 4',
            ours=lambda: (ELSASwin('tiny').to(device), images(device)),
            yardstick=lambda: (SwinTransformer('tiny').to(device), images(device)),
            yardstick_name='mmpretrain Swin-T',
        ),
        Case(
            'ELSA-VOLO-D1, 224, batch 4',
            ours=lambda: (ELSAVOLO('d1').to(device), images(device)),
            yardstick=lambda: (VOLO('d1').to(device), images(device)),
            yardstick_name='mmextra VOLO-D1',
        ),
    ]
