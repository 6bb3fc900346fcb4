"""Overlapping windows of a channels-last map: gathering them, and summing them back."""

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor


def num_windows(size: int, kernel_size: int, stride: int, padding: int) -> int:
    """How many windows fit along a side of a map."""
    return (size + 2 * padding - kernel_size) // stride + 1


def _gather(x: Tensor, num_heads: int, kernel_size: int, stride: int, padding: int) -> Tensor:
    padded = F.pad(x, (0, 0, padding, padding, padding, padding))
    views = padded.unfold(1, kernel_size, stride).unfold(2, kernel_size, stride)
    views = views.unflatten(3, (num_heads, -1))  # (B, h, w, M, d, K, K)
    return views.permute(0, 1, 2, 3, 5, 6, 4).flatten(4, 5)


def _scatter(windows: Tensor, size, kernel_size: int, stride: int, padding: int) -> Tensor:
    batch, rows, columns, heads, _, dim = windows.shape
    height, width = size[0] + 2 * padding, size[1] + 2 * padding
    out = windows.new_zeros(batch, height, width, heads, dim)
    for k in range(kernel_size**2):
        i, j = divmod(k, kernel_size)
        bottom, right = i + stride * (rows - 1) + 1, j + stride * (columns - 1) + 1
        out[:, i:bottom:stride, j:right:stride] += windows[..., k, :]
    out = out[:, padding : padding + size[0], padding : padding + size[1]]
    return out.flatten(3)


class _Gather(torch.autograd.Function):
    """The gradient of gathering is summing, and the reverse: far cheaper than autograd's own."""

    @staticmethod
    def forward(ctx, x: Tensor, num_heads: int, kernel_size: int, stride: int, padding: int):
        ctx.size, ctx.geometry = x.shape[1:3], (kernel_size, stride, padding)
        ctx.num_heads = num_heads
        return _gather(x, num_heads, kernel_size, stride, padding)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _Scatter.apply(grad, ctx.size, *ctx.geometry), None, None, None, None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, windows: Tensor, size, kernel_size: int, stride: int, padding: int):
        ctx.geometry = (windows.shape[3], kernel_size, stride, padding)
        return _scatter(windows, size, kernel_size, stride, padding)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _Gather.apply(grad, *ctx.geometry), None, None, None, None


def gather_windows(
    x: Tensor, num_heads: int, kernel_size: int, stride: int = 1, padding: int = 0
) -> Tensor:
    """Gather the pixels of each window.

    Args:
        x (Tensor): Map, (B, H, W, C).
        num_heads (int): Groups M that the channels are split into, of d = C/M channels each.
        kernel_size (int): Side K of a window.
        stride (int): Distance of the windows. Defaults to 1.
        padding (int): Zeros around the map. Defaults to 0.

    Returns:
        Tensor: (B, h, w, M, K*K, d): for window (i, j) and k, pixel
        ``(stride * i - padding + k // K, stride * j - padding + k % K)``.
    """
    gather = _gather if torch.jit.is_tracing() else _Gather.apply  # it traces no function of ours
    return gather(x, num_heads, kernel_size, stride, padding)


def scatter_windows(
    windows: Tensor, size: Tuple[int, int], kernel_size: int, stride: int = 1, padding: int = 0
) -> Tensor:
    """Add the pixels of each window at their places; the adjoint of :func:`gather_windows`.

    Args:
        windows (Tensor): (B, h, w, M, K*K, d).
        size (tuple[int, int]): Height and width of the map.
        kernel_size (int): Side K of a window.
        stride (int): Distance of the windows. Defaults to 1.
        padding (int): What falls so far outside of the map is dropped. Defaults to 0.

    Returns:
        Tensor: (B, H, W, M * d).
    """
    scatter = _scatter if torch.jit.is_tracing() else _Scatter.apply
    return scatter(windows, tuple(size), kernel_size, stride, padding)
