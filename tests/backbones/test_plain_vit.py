"""What the plain vision transformers share."""

import pytest
import torch
from mmpretrain.models.utils import resize_pos_embed
from torch.nn import functional

from mmextra.backbones.plain_vit import resize_tokens


@pytest.mark.parametrize('mode', ['bicubic', 'bilinear'])
@pytest.mark.parametrize('extra', [0, 2])
def test_tokens_are_resized_as_the_host_does(mode, extra):
    x = torch.randn(1, 12 + extra, 5)
    expected = resize_pos_embed(x, (3, 4), (5, 2), mode, extra)
    torch.testing.assert_close(resize_tokens(x, (3, 4), (5, 2), mode, extra), expected)
    assert resize_tokens(x, (3, 4), [3, 4], mode, extra) is x


def test_double_precision_is_kept_and_half_precision_comes_back():
    x = torch.randn(1, 12, 5, dtype=torch.double)
    grid = x.view(3, 4, 5).permute(2, 0, 1)[None]
    expected = functional.interpolate(grid, (5, 2), mode='bicubic').flatten(2).mT
    torch.testing.assert_close(resize_tokens(x, (3, 4), (5, 2)), expected, rtol=1e-12, atol=1e-12)
    for dtype in (torch.half, torch.bfloat16):
        out = resize_tokens(x.to(dtype), (3, 4), (5, 2))
        assert out.dtype == dtype
        torch.testing.assert_close(out, expected.to(dtype), rtol=1e-2, atol=1e-2)


def test_corners_stay_where_they_are_asked_to():
    x = torch.arange(4.0).view(1, 4, 1)
    out = resize_tokens(x, (2, 2), (3, 3), 'bilinear', align_corners=True)
    assert out.flatten().tolist() == [0, 0.5, 1, 1, 1.5, 2, 2, 2.5, 3]
