"""Overlapping windows: gathering and summing against loops over every pixel."""

import itertools

import pytest
import torch

from mmextra.ops.windows import gather_windows, num_windows, scatter_windows

GEOMETRIES = [(3, 2, 1), (3, 1, 1), (5, 2, 2), (2, 2, 0)]


def loops(x, num_heads, kernel_size, stride, padding):
    """Gathered windows, pixel by pixel."""
    batch, height, width, channels = x.shape
    rows, columns = (num_windows(side, kernel_size, stride, padding) for side in (height, width))
    out = x.new_zeros(batch, rows, columns, num_heads, kernel_size**2, channels // num_heads)
    for i, j, k in itertools.product(range(rows), range(columns), range(kernel_size**2)):
        r, c = stride * i - padding + k // kernel_size, stride * j - padding + k % kernel_size
        if 0 <= r < height and 0 <= c < width:
            out[:, i, j, :, k] = x[:, r, c].unflatten(1, (num_heads, -1))
    return out


@pytest.mark.parametrize('geometry', GEOMETRIES)
@pytest.mark.parametrize('size', [(6, 8), (7, 5)])
def test_gather_equals_loops(geometry, size):
    x = torch.randn(2, *size, 6)
    assert torch.equal(gather_windows(x, 2, *geometry), loops(x, 2, *geometry))


@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_scatter_is_the_adjoint_of_gather(geometry):
    x = torch.randn(2, 7, 6, 4, dtype=torch.double)
    windows = torch.randn_like(gather_windows(x, 2, *geometry))
    back = scatter_windows(windows, (7, 6), *geometry)
    torch.testing.assert_close((gather_windows(x, 2, *geometry) * windows).sum(), (x * back).sum())
    assert back.shape == x.shape


@pytest.mark.parametrize('geometry', GEOMETRIES[:2])
def test_gradients_of_first_and_second_order(geometry):
    x = torch.randn(1, 4, 3, 2, dtype=torch.double, requires_grad=True)
    windows = gather_windows(x, 1, *geometry).detach().requires_grad_()

    def gather(x):
        return gather_windows(x, 1, *geometry) ** 2

    def scatter(windows):
        return scatter_windows(windows, (4, 3), *geometry) ** 2

    for function, given in ((gather, x), (scatter, windows)):
        assert torch.autograd.gradcheck(function, given)
        assert torch.autograd.gradgradcheck(function, given)
