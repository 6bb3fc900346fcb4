"""The encoder of O2DETR: depthwise separable convolution in place of attention."""

from typing import List, Optional, Tuple

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.transformer import FFN
from mmdet.models.layers import DeformableDetrTransformerEncoder
from mmengine.model import BaseModule, ModuleList, kaiming_init, xavier_init
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmextra.registry import MODELS

Shapes = List[Tuple[int, int]]


class DepthwiseSeparableConv(BaseModule):
    """A depthwise 3x3 and a pointwise 1x1 convolution, both with bias.

    The pointwise one is a linear layer on tokens, so that it needs no change of layout.

    Args:
        embed_dims (int): Channels C. There are ``10 C + C (C + 1)`` parameters.
    """

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(embed_dims, embed_dims, 3, padding=1, groups=embed_dims)
        self.pointwise = nn.Linear(embed_dims, embed_dims)

    def init_weights(self) -> None:
        """Kaiming (fan out) for the depthwise weights, Xavier for the pointwise ones, zero biases."""
        kaiming_init(self.depthwise, mode='fan_out', nonlinearity='relu')
        xavier_init(self.pointwise, distribution='uniform')


class O2DETREncoderLayer(BaseModule):
    """One layer: ``x = LN(x + drop(DSConv(x)))``, ``x = LN(x + FFN(x))``.

    Args:
        embed_dims (int): Channels C. Defaults to 256.
        feedforward_channels (int): Hidden channels of the FFN. Defaults to 1024.
        dropout (float): Dropout rate after the convolution and in the FFN. Defaults to 0.1.
        share_levels (bool): Whether all levels use the same convolutions. Defaults to True.
        num_levels (int): Feature levels; matters only if ``share_levels=False``. Defaults to 4.
        cross_scale (str, optional): ``'sum'`` adds to each level its neighbours, brought to its size, between
            the depthwise and the pointwise convolution; each level must then be half as high and wide as the
            one before, rounded up. Defaults to None: levels do not mix.
        with_pos (bool): Whether the positional encoding is added before the convolution. Defaults to False.
        norm_cfg (dict): Config of the norms. Defaults to ``dict(type='LN')``.

    Raises:
        ValueError: If ``cross_scale`` is neither None nor ``'sum'``.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        feedforward_channels: int = 1024,
        dropout: float = 0.1,
        share_levels: bool = True,
        num_levels: int = 4,
        cross_scale: Optional[str] = None,
        with_pos: bool = False,
        norm_cfg: dict = dict(type='LN'),
    ) -> None:
        super().__init__()
        if cross_scale not in (None, 'sum'):
            raise ValueError(f"cross_scale must be None or 'sum', got {cross_scale!r}")
        self.embed_dims = embed_dims
        self.share_levels = share_levels
        self.cross_scale = cross_scale
        self.with_pos = with_pos
        count = 1 if share_levels else num_levels
        self.convs = ModuleList([DepthwiseSeparableConv(embed_dims) for _ in range(count)])
        self.dropout = nn.Dropout(dropout)
        self.ffn = FFN(embed_dims, feedforward_channels, ffn_drop=dropout)
        self.norms = ModuleList([build_norm_layer(norm_cfg, embed_dims)[1] for _ in range(2)])

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        key_padding_mask: Optional[Tensor],
        spatial_shapes: Shapes,
    ) -> Tensor:
        """Mix each token with its neighbours on the same level.

        Args:
            query (Tensor): Tokens of all levels, (B, N, C).
            query_pos (Tensor): Positional encoding, (B, N, C).
            key_padding_mask (Tensor, optional): True at padded positions, (B, N).
            spatial_shapes (list[tuple]): (height, width) of each level; N is the sum of their products.

        Returns:
            Tensor: (B, N, C). What stands at padded positions does not reach the valid ones.
        """
        x = query + query_pos if self.with_pos else query
        query = self.norms[0](query + self.dropout(self.mix(x, key_padding_mask, spatial_shapes)))
        return self.norms[1](self.ffn(query))

    def mix(self, x: Tensor, padding: Optional[Tensor], shapes: Shapes) -> Tensor:
        """The depthwise separable convolution of every level, (B, N, C) to (B, N, C)."""
        sizes = [height * width for height, width in shapes]
        if not self.share_levels and len(shapes) != len(self.convs):
            raise ValueError(
                f'the encoder has convolutions for num_levels={len(self.convs)} levels, the neck gives '
                f'{len(shapes)}: set num_levels in encoder.layer_cfg'
            )
        convs = [self.convs[0 if self.share_levels else i] for i in range(len(shapes))]
        x = _without_padding(x, padding)
        maps = [
            conv.depthwise(tokens.unflatten(1, shape).permute(0, 3, 1, 2))  # (B, C, h, w)
            for conv, tokens, shape in zip(convs, x.split(sizes, 1), shapes)
        ]
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
        if self.cross_scale == 'sum':
            tokens = _add_neighbours(_without_padding(tokens, padding), shapes)
        if self.share_levels:
            return convs[0].pointwise(tokens)
        return torch.cat([c.pointwise(t) for c, t in zip(convs, tokens.split(sizes, 1))], 1)


def _without_padding(tokens: Tensor, padding: Optional[Tensor]) -> Tensor:
    """The tokens (B, N, C), zero wherever ``padding`` (B, N) is True."""
    return tokens if padding is None else tokens.masked_fill(padding[..., None], 0.0)


def _add_neighbours(tokens: Tensor, shapes: Shapes) -> Tensor:
    """Add the next coarser level, repeated, and the next finer one, averaged over 2x2 cells.

    Both act cell by cell, with cells outside counting as zero, so that the size of a padded area
    does not matter.
    """
    for (h, w), coarser in zip(shapes, shapes[1:]):
        if coarser != ((h + 1) // 2, (w + 1) // 2):
            raise ValueError(
                f"cross_scale='sum' needs levels that halve, rounded up; got {(h, w)} followed by {coarser}"
            )
    maps = [
        t.transpose(1, 2).unflatten(2, s)
        for t, s in zip(tokens.split([h * w for h, w in shapes], 1), shapes)
    ]
    mixed = list(maps)
    for i in range(len(maps) - 1):
        mixed[i] = mixed[i] + F.interpolate(maps[i + 1], size=shapes[i], mode='nearest')
        mixed[i + 1] = mixed[i + 1] + F.avg_pool2d(maps[i], 2, ceil_mode=True, divisor_override=4)
    return torch.cat([m.flatten(2).transpose(1, 2) for m in mixed], 1)


@MODELS.register_module()
class O2DETREncoder(DeformableDetrTransformerEncoder):
    """Encoder of O2DETR, in place of stock Deformable DETR's.

    Its cost is linear in the number of tokens: ``O(N C (9 + C))`` a layer, without the FFN.

    Args:
        num_layers (int): Layers. A cell sees ``2 num_layers + 1`` cells of its level in each direction.
        layer_cfg (dict): Arguments of each :class:`O2DETREncoderLayer`.
        num_cp (int): How many of the first layers are computed anew in the backward pass, to save memory.
            Defaults to -1, none.
        init_cfg (dict, optional): Defaults to None.
    """

    def _init_layers(self) -> None:
        self.layers = ModuleList(
            [O2DETREncoderLayer(**self.layer_cfg) for _ in range(self.num_layers)]
        )
        self.embed_dims = self.layers[0].embed_dims
        self.with_pos = self.layers[0].with_pos

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        key_padding_mask: Optional[Tensor],
        spatial_shapes: Tensor,
        level_start_index: Optional[Tensor] = None,
        valid_ratios: Optional[Tensor] = None,
    ) -> Tensor:
        """Encode the tokens of all levels.

        Args:
            query (Tensor): Tokens of all levels, (B, N, C).
            query_pos (Tensor): Positional encoding, (B, N, C); used if ``with_pos``.
            key_padding_mask (Tensor, optional): True at padded positions, (B, N).
            spatial_shapes (Tensor): (height, width) of each level, (L, 2).
            level_start_index, valid_ratios (Tensor, optional): Not used; stock encoders take them.

        Returns:
            Tensor: Memory, (B, N, C).
        """
        shapes = [(h, w) for h, w in spatial_shapes.tolist()]
        for i, layer in enumerate(self.layers):
            inputs = query, query_pos, key_padding_mask, shapes
            if i < self.num_cp and torch.is_grad_enabled():
                query = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                query = layer(*inputs)
        return query
