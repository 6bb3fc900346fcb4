"""DeepViT-S beside DeiT-S, and re-attention beside the host's attention and its two extra kernels written out."""

import torch
from benchmark_case import Case
from mmpretrain.models import VisionTransformer
from mmpretrain.models.utils import MultiheadAttention
from torch import nn

from mmextra.backbones.deepvit import DeepViT, ReAttention


class TwoKernels(ReAttention):
    """Re-attention with a 1x1 convolution and a batch norm over the maps, as the paper writes it."""

    def mix_heads(self, attn):
        return self.reatten_scale * self.var_norm(self.reatten_matrix(attn)), 0.0


def written_out(model: nn.Module) -> nn.Module:
    """The same model with the two kernels."""
    for module in model.modules():
        if isinstance(module, ReAttention):
            module.__class__ = TwoKernels
    return model


def images(device, batch=4):
    return (torch.randn(batch, 3, 224, 224, device=device),)


def tokens(device, batch=4):
    return (torch.randn(batch, 197, 384, device=device),)


def cases(device):
    return [
        Case(
            'DeepViT-S, 224, batch 4',
            ours=lambda: (DeepViT('s').to(device), images(device)),
            yardstick=lambda: (VisionTransformer('deit-small').to(device), images(device)),
            yardstick_name='mmpretrain DeiT-S',
            reference=lambda: (written_out(DeepViT('s')).to(device), images(device)),
            reference_name='DeepViT-S with convolution and batch norm over the maps',
        ),
        Case(
            're-attention, 197 tokens, 384 channels, 12 heads, batch 4',
            ours=lambda: (ReAttention(384, 12).to(device), tokens(device)),
            yardstick=lambda: (MultiheadAttention(384, 12).to(device), tokens(device)),
            yardstick_name='mmpretrain MultiheadAttention',
            reference=lambda: (written_out(ReAttention(384, 12)).to(device), tokens(device)),
            reference_name='convolution and batch norm over the maps',
        ),
    ]
