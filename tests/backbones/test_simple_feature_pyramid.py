"""The pyramid of one map: strides, what is in each level, and its place between host backbones and heads."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmextra.registry import MODELS

TINY = {'SimpleFeaturePyramid': dict(in_channels=8, out_channels=6)}


def neck(**options):
    torch.manual_seed(0)
    return MODELS.build(
        dict(type='SimpleFeaturePyramid', **{**TINY['SimpleFeaturePyramid'], **options})
    )


def sizes(outs):
    return [tuple(out.shape[2:]) for out in outs]


def test_strides_of_a_vit_map():
    """A map of stride 16 of a 224x160 image."""
    outs = neck()((torch.randn(2, 8, 14, 10),))
    assert sizes(outs) == [(56, 40), (28, 20), (14, 10), (7, 5), (4, 3)]
    assert all(out.shape[:2] == (2, 6) for out in outs)


def test_only_the_last_map_counts():
    maps = torch.randn(3, 2, 8, 4, 4)
    layer = neck()
    for a, b in zip(layer(tuple(maps)), layer((maps[2],))):
        assert torch.equal(a, b)


def layer_norm(x, norm):
    """Over the channels of each position, one by one."""
    rows = [F.layer_norm(row, norm.weight.shape, norm.weight, norm.bias, norm.eps) for row in x.mT]
    return torch.stack(rows).mT


def pointwise(x, weight):
    return torch.einsum('oc,bcn->bon', weight, x)


@pytest.mark.parametrize('norm_cfg', [dict(type='mmpretrain.LN2d'), None])
@torch.no_grad()
def test_levels_against_the_figure(norm_cfg):
    """Every level, written out with elementary operations."""
    layer = neck(norm_cfg=norm_cfg)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)

    def double(x, deconv):
        out = torch.einsum('bchw,coij->bohiwj', x, deconv.weight)
        batch, channels, height, _, width, _ = out.shape
        return out.reshape(batch, channels, 2 * height, 2 * width) + deconv.bias.view(1, -1, 1, 1)

    def norm(x, module):
        return layer_norm(x.flatten(2), module).view_as(x) if norm_cfg else x

    def last(x, lateral, output):
        for module in (lateral, output):
            conv, side = module.conv, module.conv.kernel_size[0]
            patches = F.unfold(x, side, padding=side // 2)
            y = pointwise(patches, conv.weight.flatten(1)).view(len(x), -1, *x.shape[2:])
            x = y if conv.bias is None else y + conv.bias.view(1, -1, 1, 1)
            x = norm(x, module.norm if norm_cfg else None)
        return x

    x = torch.randn(2, 8, 4, 6)
    four, two, one, half = layer.levels
    between = four[1:-3]
    assert [type(m).__name__ for m in between] == ['LayerNorm2d', 'GELU'][0 if norm_cfg else 1 :]
    x4 = F.gelu(norm(double(x, four[0]), between[0]))
    pooled = x.reshape(2, 8, 2, 2, 3, 2).amax((3, 5))
    expected = [
        last(double(x4, four[-3]), *four[-2:]),
        last(double(x, two[0]), *two[-2:]),
        last(x, *one),
        last(pooled, *half[-2:]),
    ]
    expected.append(expected[-1][..., ::2, ::2])
    outs = layer((x,))
    assert len(outs) == len(expected)
    for a, b in zip(outs, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_odd_and_tiny_maps():
    assert sizes(neck()((torch.randn(1, 8, 1, 3),))) == [(4, 12), (2, 6), (1, 3), (1, 2), (1, 1)]


def test_other_scales():
    outs = neck(scales=(8, 1, 0.25), num_outs=3)((torch.randn(1, 8, 8, 8),))
    assert sizes(outs) == [(64, 64), (8, 8), (2, 2)]


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(scales=(3.0, 1.0)), 'powers of 2.*got 3'),
        (dict(scales=(16.0,)), 'up to the 8 channels'),
        (dict(scales=(0.0,)), 'powers of 2'),
        (dict(scales=()), 'at least one scale'),
        (dict(num_outs=3), 'at least the number of scales, 4'),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        neck(**options)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_detector_and_segmentor_build_it(scope):
    """Behind a stock isotropic backbone, in either host's scope."""
    from mmengine.registry import MODELS as ROOT
    from mmengine.registry import DefaultScope

    DefaultScope.get_instance('test', scope_name=scope)
    backbone = ROOT.build(
        dict(
            type='mmpretrain.VisionTransformer',
            arch=dict(embed_dims=8, num_layers=1, num_heads=1, feedforward_channels=8),
            img_size=32,
            out_type='featmap',
        )
    )
    layer = ROOT.build(dict(type='mmextra.SimpleFeaturePyramid', **TINY['SimpleFeaturePyramid']))
    outs = layer(backbone(torch.randn(2, 3, 64, 32)))
    assert sizes(outs)[:4] == [(16, 8), (8, 4), (4, 2), (2, 1)]
    sum(out.square().mean() for out in outs).backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_export_and_mixed_precision():
    layer = neck().eval()
    x = torch.randn(1, 8, 4, 4)
    for a, b in zip(torch.export.export(layer, ((x,),)).module()((x,)), layer((x,))):
        torch.testing.assert_close(a, b)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert all(out.isfinite().all() for out in layer((x,)))
