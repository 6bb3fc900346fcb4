"""O2DETR: its encoder beside stock Deformable DETR's, on the four levels of a 512x512 image."""

import torch
from benchmark_case import Case
from mmdet.models.layers import DeformableDetrTransformerEncoder
from torch import nn

from mmextra.det.o2detr import O2DETREncoder

SHAPES = [(64, 64), (32, 32), (16, 16), (8, 8)]
BATCH = 2


def inputs(device: str) -> tuple:
    """Tokens, positional encoding, no padding, shapes, starts and valid ratios of the levels."""
    shapes = torch.tensor(SHAPES, device=device)
    sizes = shapes.prod(1)
    tokens, encoding = torch.randn(2, BATCH, int(sizes.sum()), 256, device=device)
    starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)[:-1]])
    return tokens, encoding, None, shapes, starts, torch.ones(BATCH, 4, 2, device=device)


def encoder(device: str, **layer) -> tuple:
    built: nn.Module = O2DETREncoder(6, dict(embed_dims=256, feedforward_channels=1024, **layer))
    return built.to(device), inputs(device)


def stock_encoder(device: str) -> tuple:
    layer = dict(
        self_attn_cfg=dict(embed_dims=256, batch_first=True),
        ffn_cfg=dict(embed_dims=256, feedforward_channels=1024, ffn_drop=0.1),
    )
    built = DeformableDetrTransformerEncoder(6, layer)
    return built.to(device), inputs(device)


def cases(device: str = 'cpu'):
    return [
        Case(
            'encoder of 6 layers, 4 levels of 512, batch 2',
            ours=lambda: encoder(device),
            yardstick=lambda: stock_encoder(device),
            yardstick_name='deformable attention (mmdet)',
            reference=lambda: encoder(device, cross_scale='sum'),
            reference_name="ours, cross_scale='sum'",
        )
    ]
