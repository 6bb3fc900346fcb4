"""The blocks of STViT and STViT-R: attention between image tokens and semantic tokens."""

from typing import Optional, Tuple, Union

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.scale import LayerScale
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import BaseModule
from mmpretrain.models.utils import ShiftWindowMSA
from torch import Tensor, nn

from mmextra.ops.windows import gather_windows
from mmextra.registry import MODELS

Size = Tuple[int, int]
PadMask = Union[str, bool]
MASKED = -1000.0  # added to the logits of padding
LAYER_SCALE = 1e-5  # initial value


class SemanticAttention(BaseModule):
    """Multi-head attention with separate projections of queries and of keys with values.

    Keys and values are projected by :attr:`kv` beforehand, once for each token, and cut into windows afterwards: a
    token that several windows see is projected once.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads.
        qkv_bias (bool): Whether queries, keys and values have a bias. Defaults to True.

    Raises:
        ValueError: If ``embed_dims`` is no multiple of ``num_heads``.
    """

    def __init__(self, embed_dims: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(f'embed_dims={embed_dims} is no multiple of num_heads={num_heads}')
        self.num_heads = num_heads
        self.q = nn.Linear(embed_dims, embed_dims, bias=qkv_bias)
        self.kv = nn.Linear(embed_dims, 2 * embed_dims, bias=qkv_bias)
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, query: Tensor, kv: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        """Attend.

        Args:
            query (Tensor): (B, N, C), normalised tokens.
            kv (Tensor): (B, M, 2C), projected keys and values.
            mask (Tensor, optional): Added to the logits, broadcast to (B, heads, N, M). Defaults to None.

        Returns:
            Tensor: (B, N, C).
        """
        q = self.q(query).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = kv.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(x.transpose(1, 2).flatten(2))


@MODELS.register_module()
class SemanticBlock(BaseModule):
    r"""Transformer block with LayerScale whose queries and keys may be different tokens.

    .. math::
        y = x + \gamma_1 \mathrm{Attn}(\mathrm{LN}_1 x, \mathrm{LN}_1 c), \qquad
        z = y + \gamma_2 \mathrm{FFN}(\mathrm{LN}_2 y)

    One norm serves queries x and context c. The gammas start at 1e-5.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads.
        window_size (int, optional): Side of the windows of :meth:`forward` with ``hw_shape``. Defaults to None.
        mlp_ratio (float): Hidden channels of the FFN over C. Defaults to 4.
        qkv_bias (bool): Whether queries, keys and values have a bias. Defaults to True.
        drop_path_rate (float): Stochastic depth of either branch. Defaults to 0.
        init_cfg (dict, optional): Defaults to None.

    Raises:
        ValueError: If ``embed_dims`` is no multiple of ``num_heads``.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        window_size: Optional[int] = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        init_cfg: Optional[dict] = None,
    ) -> None:
        super().__init__(init_cfg)
        self.window_size = window_size
        self.norm1 = nn.LayerNorm(embed_dims)
        self.attn = SemanticAttention(embed_dims, num_heads, qkv_bias)
        self.gamma1 = LayerScale(embed_dims, scale=LAYER_SCALE)
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = nn.LayerNorm(embed_dims)
        self.ffn = FFN(
            embed_dims,
            int(embed_dims * mlp_ratio),
            act_cfg=dict(type='GELU'),
            dropout_layer=dict(type='DropPath', drop_prob=drop_path_rate),
            layer_scale_init_value=LAYER_SCALE,
        )

    def forward(
        self, x: Tensor, context: Optional[Tensor] = None, hw_shape: Optional[Size] = None
    ) -> Tensor:
        """Update tokens.

        Args:
            x (Tensor): (B, N, C).
            context (Tensor, optional): Tokens (B, M, C) to attend to. Defaults to None, ``x`` itself.
            hw_shape (tuple[int], optional): The grid (H, W) of ``x``, both multiples of ``window_size``: self-attention
                within windows. Defaults to None, among all tokens.

        Returns:
            Tensor: (B, N, C).
        """
        query = self.norm1(x)
        if hw_shape is not None:
            query = to_windows(query, hw_shape, self.window_size)
        kv = self.attn.kv(query if context is None else self.norm1(context))
        branch = self.attn(query, kv)
        if hw_shape is not None:
            branch = from_windows(branch, hw_shape, self.window_size)
        return self.add(x, branch)

    def add(self, x: Optional[Tensor], branch: Tensor) -> Tensor:
        """Add the attention's branch to ``x`` (or put it in its place, for None), then the FFN's."""
        branch = self.drop_path(self.gamma1(branch))
        x = branch if x is None else x + branch
        return self.ffn(self.norm2(x), identity=x)

    def projected_neighbourhoods(
        self,
        tokens: Tensor,
        hw_shape: Size,
        whole: Size,
        size: int,
        stride: int,
        pad: Size,
        pad_mask: PadMask,
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """Keys and values around each window of a map that zeros surround, and the mask for these.

        Zeros are tokens like others unless they are masked: their keys and values are those of LN1(0). They are filled
        in after the projection, which sees each token of the map once.

        Args:
            tokens (Tensor): (B, H*W, C).
            hw_shape (tuple[int]): H, W.
            whole (tuple[int]): The size of the map with zeros at the bottom and the right, in whole windows.
            size (int): Side of a neighbourhood, in tokens.
            stride (int): Side of a window, in tokens.
            pad (tuple[int]): Rows and columns by which image tokens were padded, for the published mask.
            pad_mask (str | bool): ``'exact'``, ``'published'`` or False.

        Returns:
            tuple: Keys and values (B * windows, size * size, 2C), and None or the mask, (B * windows, 1, 1,
            size * size).
        """
        before, after = (size - stride) // 2, (size - stride + 1) // 2
        right, bottom = whole[1] - hw_shape[1] + after, whole[0] - hw_shape[0] + after
        around = (0, 0, before, right, before, bottom)
        kv = self.attn.kv(self.norm1(tokens)).unflatten(1, hw_shape)
        outside = F.pad(kv.new_zeros(1, *hw_shape, 1), around, value=1.0)
        kv = F.pad(kv, around)
        if pad_mask != 'exact':
            zero = tokens.new_zeros(1, 1, 1, tokens.shape[-1])
            kv = kv + outside * self.attn.kv(self.norm1(zero))
        if not pad_mask:
            return neighbourhoods(kv, size, stride), None
        mask = outside * MASKED
        if pad_mask == 'published':
            mask = F.pad(published_mask(kv, whole, pad), (0, 0, *(before, after) * 2), value=MASKED)
        mask = neighbourhoods(mask, size, stride)[:, None, None, :, 0]
        return neighbourhoods(kv, size, stride), mask.repeat(len(tokens), 1, 1, 1)


def published_mask(like: Tensor, whole: Size, pad: Size) -> Tensor:
    """The additive mask (1, H, W, 1) of the released detectors, before the border is put around it.

    Where both sides are padded it hides the corner of the last rows and columns only; where one is, that strip; where
    none is, the whole map, which together with the border changes nothing.
    """
    mask = like.new_zeros(1, *whole, 1)
    mask[:, -pad[0] :, -pad[1] :] = MASKED  # `-0:` is everything
    return mask


def semantic_grid(hw_shape: Size, window_size: int = 7, sample_size: int = 3) -> Size:
    """Rows and columns of the semantic tokens of a map (H, W), which is padded to whole windows."""
    return tuple(sample_size * -(-side // window_size) for side in hw_shape)


def to_windows(tokens: Tensor, hw_shape: Size, size: int) -> Tensor:
    """Cut tokens (B, H*W, C) of a map into windows (B * windows, size * size, C)."""
    return ShiftWindowMSA.window_partition(tokens.unflatten(1, hw_shape), size).flatten(1, 2)


def from_windows(windows: Tensor, hw_shape: Size, size: int) -> Tensor:
    """Undo :func:`to_windows`."""
    windows = windows.unflatten(1, (size, size))
    return ShiftWindowMSA.window_reverse(windows, *hw_shape, size).flatten(1, 2)


def neighbourhoods(grid: Tensor, size: int, stride: int) -> Tensor:
    """Cut overlapping patches (B * patches, size * size, C) out of a map (B, H, W, C)."""
    return gather_windows(grid, 1, size, stride).flatten(0, 2).squeeze(1)


def check_pad_mask(pad_mask: PadMask) -> None:
    """Raise a ``ValueError`` unless the option is a known one."""
    if pad_mask not in ('exact', 'published', False):
        raise ValueError(f"pad_mask must be 'exact', 'published' or False, got {pad_mask!r}")


@MODELS.register_module()
class SemanticAttentionBlock(SemanticBlock):
    """Find semantic tokens in a map: each window's tokens attend to the image tokens around it.

    The queries are the maxima of ``sample_size`` x ``sample_size`` overlapping cells of each window, or tokens that
    are given. The two published forms differ:

    - ``variant='cls'``, the ImageNet classifiers: a map of 2x2 windows; the keys are the window's queries and a patch
      of ``key_size`` within the map. Without ``shortcut``, the tokens are only what the attention returns.
    - ``variant='dense'``, the detectors: any map, padded with zeros to whole windows; the keys are the ``key_size``
      neighbourhood of the window, which reaches beyond the map. The queries are always added.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads.
        window_size (int): Side of a window in image tokens. Defaults to 7.
        sample_size (int): Semantic tokens on a side of a window. Defaults to 3.
        key_size (int, optional): Side of the keys' patch. Defaults to ``window_size + 3`` for ``'cls'``, twice
            ``window_size`` for ``'dense'``.
        variant (str): ``'cls'`` or ``'dense'``. Defaults to ``'dense'``.
        shortcut (bool): Whether ``'cls'`` adds the queries. Defaults to False, as released.
        pad_mask (str | bool): What ``'dense'`` does with padding among the keys: ``'exact'`` hides it, ``'published'``
            hides what the released detectors hide, False lets it take part. Defaults to ``'exact'``.
        **kwargs: The further arguments of :class:`SemanticBlock`.

    Raises:
        ValueError: For an unknown ``variant`` or ``pad_mask``.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        window_size: int = 7,
        sample_size: int = 3,
        key_size: Optional[int] = None,
        variant: str = 'dense',
        shortcut: bool = False,
        pad_mask: PadMask = 'exact',
        **kwargs,
    ) -> None:
        super().__init__(embed_dims, num_heads, window_size, **kwargs)
        if variant not in ('cls', 'dense'):
            raise ValueError(f"variant must be 'cls' or 'dense', got {variant!r}")
        check_pad_mask(pad_mask)
        self.sample_size = sample_size
        self.key_size = key_size or (window_size + 3 if variant == 'cls' else 2 * window_size)
        self.variant = variant
        self.shortcut = shortcut or variant == 'dense'
        self.pad_mask = pad_mask

    def forward(self, x: Tensor, hw_shape: Size, semantic: Optional[Tensor] = None) -> Tensor:
        """Make or update semantic tokens.

        Args:
            x (Tensor): Image tokens (B, H*W, C).
            hw_shape (tuple[int]): H, W.
            semantic (Tensor, optional): Semantic tokens (B, N, C), row by row. Defaults to None, those pooled from
                ``x``.

        Returns:
            Tensor: Semantic tokens (B, N, C), row by row on the grid :func:`semantic_grid`.

        Raises:
            ValueError: If ``variant='cls'`` and the map is not 2x2 windows.
        """
        window, (height, width) = self.window_size, hw_shape
        pad = (-height % window, -width % window)
        grid = semantic_grid(hw_shape, window, self.sample_size)
        if semantic is None:
            semantic = self.pool(F.pad(x.unflatten(1, hw_shape), (0, 0, 0, pad[1], 0, pad[0])))
        query = to_windows(self.norm1(semantic), grid, self.sample_size)
        if self.variant == 'cls':
            kv, mask = self.keys_of_classifier(x, hw_shape, query), None
        else:
            whole = (height + pad[0], width + pad[1])
            kv, mask = self.projected_neighbourhoods(
                x, hw_shape, whole, self.key_size, window, pad, self.pad_mask
            )
        branch = from_windows(self.attn(query, kv, mask), grid, self.sample_size)
        return self.add(semantic if self.shortcut else None, branch)

    def pool(self, grid: Tensor) -> Tensor:
        """Pool a map (B, H, W, C) of whole windows to the semantic tokens (B, N, C), row by row."""
        size, hw_shape = self.window_size, tuple(grid.shape[1:3])
        windows = ShiftWindowMSA.window_partition(grid, size).permute(0, 3, 1, 2)
        pooled = F.adaptive_max_pool2d(windows, self.sample_size).flatten(2).transpose(1, 2)
        return from_windows(
            pooled, semantic_grid(hw_shape, size, self.sample_size), self.sample_size
        )

    def keys_of_classifier(self, x: Tensor, hw_shape: Size, query: Tensor) -> Tensor:
        """Keys and values (B * 4, n^2 + K^2, 2C): each window's normalised queries, and the patch around it."""
        if tuple(hw_shape) != (2 * self.window_size,) * 2:
            raise ValueError(
                f"variant='cls' needs a map of 2x2 windows, {2 * self.window_size} tokens on a side "
                f"(images of 224 for window_size=7), got {tuple(hw_shape)}; use variant='dense'"
            )
        kv = self.attn.kv(self.norm1(x)).unflatten(1, hw_shape)
        patches = neighbourhoods(kv, self.key_size, 2 * self.window_size - self.key_size)
        return torch.cat((self.attn.kv(query), patches), dim=1)


@MODELS.register_module()
class SemanticRecoveryBlock(SemanticBlock):
    """Give a map back what its semantic tokens have gathered.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads.
        window_size (int): Side of a window in image tokens. Defaults to 7.
        sample_size (int): Semantic tokens on a side of a window. Defaults to 3.
        key_size (int, optional): Each window attends to so many semantic tokens on a side around it. Defaults to
            None: each image token attends to all of them, as in the classifiers.
        pad_mask (str | bool): What is done with keys beyond the grid, see :class:`SemanticAttentionBlock`. Defaults to
            ``'exact'``.
        **kwargs: The further arguments of :class:`SemanticBlock`.

    Raises:
        ValueError: For an unknown ``pad_mask``.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        window_size: int = 7,
        sample_size: int = 3,
        key_size: Optional[int] = None,
        pad_mask: PadMask = 'exact',
        **kwargs,
    ) -> None:
        super().__init__(embed_dims, num_heads, window_size, **kwargs)
        check_pad_mask(pad_mask)
        self.sample_size = sample_size
        self.key_size = key_size
        self.pad_mask = pad_mask

    def forward(self, x: Tensor, hw_shape: Size, semantic: Tensor) -> Tensor:
        """Update image tokens.

        Args:
            x (Tensor): Image tokens (B, H*W, C).
            hw_shape (tuple[int]): H, W.
            semantic (Tensor): Semantic tokens (B, N, C), row by row.

        Returns:
            Tensor: (B, H*W, C).
        """
        if self.key_size is None:
            return super().forward(x, semantic)
        window, (height, width) = self.window_size, hw_shape
        pad = (-height % window, -width % window)
        padded = (height + pad[0], width + pad[1])
        query = F.pad(self.norm1(x).unflatten(1, hw_shape), (0, 0, 0, pad[1], 0, pad[0]))
        query = to_windows(query.flatten(1, 2), padded, window)
        grid = semantic_grid(hw_shape, window, self.sample_size)
        # The grid of semantic tokens is whole. The published mask counts the image tokens' padding on it all the same.
        kv, mask = self.projected_neighbourhoods(
            semantic, grid, grid, self.key_size, self.sample_size, pad, self.pad_mask
        )
        branch = from_windows(self.attn(query, kv, mask), padded, window).unflatten(1, padded)
        return self.add(x, branch[:, :height, :width].flatten(1, 2))
