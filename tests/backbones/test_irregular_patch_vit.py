"""Irregular patches: the numbers of the settings, token grids, what each part sees, and the fusion's limits."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import fuse_conv_bn
from mmpretrain.models.utils import InvertedResidual, SELayer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmextra.backbones.irregular_patch_vit import (
    IrregularPatchEmbed,
    IrregularPatchViT,
    resize_grids,
    squeeze_excite,
)
from mmextra.registry import MODELS

NANO = dict(embed_dims=16, num_layers=2, num_heads=2, stem_channels=(4, 6, 8, 8))
TINY = {
    'IrregularPatchEmbed': dict(embed_dims=16, stem_channels=(4, 6, 8, 8)),
    'AdaptivePatchFusion': dict(embed_dims=16, num_tokens=9),
    'IrregularPatchViT': dict(
        arch=NANO, img_size=64, out_type='featmap', out_indices=(0, 1, 2, 3, 4)
    ),
}


def backbone(**options):
    torch.manual_seed(0)
    model = IrregularPatchViT(**{'arch': NANO, 'img_size': 64, **options})
    model.init_weights()
    return model


def embedding(**options):
    torch.manual_seed(0)
    return redraw(IrregularPatchEmbed(**{**TINY['IrregularPatchEmbed'], **options})).eval()


def redraw(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    for name, buffer in module.named_buffers():
        if name.endswith(('running_mean', 'running_var')):
            buffer.uniform_(0.5, 1.5)
    return module


def cost(build, *shape):
    """Parameters and multiply-adds of a module that takes images."""
    with torch.device('meta'), FlopCounterMode(display=False) as counter, torch.no_grad():
        model = build().eval()
        model(torch.empty(*shape))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2


# --- the numbers of the settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'arch, params, macs',
    [('s', 1_882_205, 0.1745e9), ('m', 4_101_919, 0.3255e9), ('l', 8_752_961, 0.6821e9)],
)
def test_size_and_cost(arch, params, macs):
    dims = IrregularPatchViT.arch_zoo[arch]['embed_dims']
    got = cost(lambda: IrregularPatchViT(arch), 1, 3, 224, 224)
    assert got[0] + 1000 * dims + 1000 == params
    assert got[1] + 1000 * dims == pytest.approx(macs, rel=1e-2)


@pytest.mark.parametrize(
    'name, params, macs',
    [('c64', 726_824, 0.186e9), ('c96', 1_532_104, 0.365e9), ('c128', 2_632_296, 0.603e9)],
)
def test_size_and_cost_of_the_baselines(name, params, macs):
    from pathlib import Path

    from mmengine.config import Config
    from mmpretrain.registry import MODELS as HOST

    folder = Path(__file__).parents[2] / 'configs' / 'irregular_patch_vit'
    cfg = Config.fromfile(folder / f'deit-{name}_8xb128_in1k.py').model
    cfg.train_cfg = None
    got = cost(lambda: HOST.build(cfg), 1, 3, 224, 224)
    assert got[0] == params and got[1] == pytest.approx(macs, rel=1e-2)


@pytest.mark.parametrize(
    'size, grids',
    [
        ((224, 224), [(7, 7), (4, 4), (1, 1)]),
        ((256, 256), [(8, 8), (4, 4), (1, 1)]),
        ((192, 256), [(6, 8), (3, 4), (1, 1)]),
        ((97, 33), [(4, 2), (2, 1), (1, 1)]),
    ],
)
def test_tokens_of_an_image(size, grids):
    layer = embedding()
    with torch.no_grad():
        tokens, found, maps = layer(torch.randn(1, 3, *size))
    assert found == grids == layer.grids(size)
    assert tokens.shape == (1, sum(a * b for a, b in grids), 16)
    strides = [(math.ceil(size[0] / s), math.ceil(size[1] / s)) for s in (4, 8, 16)]
    assert [tuple(m.shape[1:]) for m in maps] == [(c, *s) for c, s in zip((6, 8, 8), strides)]
    assert sum(a * b for a, b in embedding().grids((224, 224))) == 66
    assert sum(a * b for a, b in embedding().grids((256, 256))) == 81
    assert sum(a * b for a, b in embedding().grids((192, 256))) == 61


@pytest.mark.golden('irregular_patch_vit', 'regression*')
def test_nothing_changes_unnoticed(case):
    """The file is our own: the authors published no code."""
    options = case.meta['kwargs']
    fused = case.load(IrregularPatchViT(**options)).eval()
    maps = IrregularPatchViT(**options, out_type='featmap', out_indices=range(5)).eval()
    maps.load_state_dict(case.state, strict=False)
    x = (case.inputs['x_int8'].float() / 4).requires_grad_()
    out = fused(x)[0]
    (out * case.inputs['w']).sum().backward()
    outs = {f'map{i}': m for i, m in enumerate(maps(x.detach()))}
    case.check(dict(fused=out, **outs), dict(x=x.grad[:, :, ::4, ::4]))


# --- patches --------------------------------------------------------------------------------------------------------


def stem_map(layer, x):
    for stage in layer.stages:
        x = stage(x)
    return x


@torch.no_grad()
def test_branches_are_inverted_residual_blocks_side_by_side():
    """Each branch alone, as the host's block with its own expansion, written after the order of the tokens."""
    layer = embedding()
    x = torch.randn(2, 3, 96, 64)
    tokens, grids, _ = layer(x)
    z, parts = stem_map(layer, x), []
    assert z.shape[1:] == (8, 6, 4)
    for i, (stride, kernel) in enumerate([(2, 3), (4, 5), ('global', 3)]):
        block = InvertedResidual(
            8, 16, 24, kernel, se_cfg=squeeze_excite(24), act_cfg=dict(type='HSwish')
        ).eval()
        block.depthwise_conv.conv.stride = (1, 1) if stride == 'global' else (stride, stride)
        state = layer.branches[i].state_dict()
        own = slice(24 * i, 24 * (i + 1))
        shared = {k: v[own] if v.ndim else v for k, v in layer.expand_conv.state_dict().items()}
        block.load_state_dict({**state, **{f'expand_conv.{k}': v for k, v in shared.items()}})
        if stride == 'global':  # averaged after the gate, before the projection
            y = block.se(block.depthwise_conv(block.expand_conv(z)))
            out = block.linear_conv(y.mean((2, 3), keepdim=True))
        else:
            out = block(z)
        assert tuple(out.shape[2:]) == grids[i]
        parts += [
            out[:, :, row, column] for row in range(out.shape[2]) for column in range(out.shape[3])
        ]
    torch.testing.assert_close(tokens, torch.stack(parts, 1), rtol=1e-4, atol=1e-5)


def test_stem_is_what_the_settings_say():
    layer = IrregularPatchEmbed(32, (4, 6, 10, 12))
    first, *blocks = [m for stage in layer.stages for m in stage]
    assert (first.conv.kernel_size, first.conv.stride, first.conv.bias) == ((3, 3), (2, 2), None)
    rows = []
    for b in blocks:
        conv = b.depthwise_conv.conv
        expand = conv.in_channels // (
            b.expand_conv.conv.in_channels if b.with_expand_conv else conv.in_channels
        )
        source = conv.in_channels // expand
        rows.append(
            (
                source,
                b.linear_conv.conv.out_channels,
                expand,
                conv.kernel_size[0],
                conv.stride[0],
                b.with_se,
            )
        )
        assert conv.bias is None and isinstance(b.depthwise_conv.activate, nn.Hardswish)
        assert not b.linear_conv.with_activation
        if b.with_se:
            squeeze = b.se.conv1.conv
            assert squeeze.out_channels == conv.in_channels // 4 and squeeze.bias is not None
            assert isinstance(b.se.conv1.activate, nn.ReLU) and isinstance(
                b.se.conv2.activate, nn.Sigmoid
            )
    assert rows == [
        (4, 4, 1, 3, 1, False),
        (4, 6, 4, 3, 2, False),
        (6, 6, 3, 3, 1, False),
        (6, 10, 3, 5, 2, True),
        (10, 10, 3, 5, 1, True),
        (10, 12, 6, 3, 2, True),
        (12, 12, 3, 3, 1, True),
    ]


def test_patches_are_local_and_the_global_one_is_not():
    layer = embedding()
    for module in list(layer.modules()):
        if isinstance(getattr(module, 'se', None), SELayer):
            module.se = nn.Identity()  # a gate makes every patch depend on everything
    x = torch.randn(1, 3, 224, 224, requires_grad=True)
    tokens, _, _ = layer(x)

    def support(index):
        gradient = torch.autograd.grad(tokens[0, index].sum(), x, retain_graph=True)[0]
        seen = gradient[0].abs().sum(0) > 0
        rows, columns = seen.any(1).nonzero(), seen.any(0).nonzero()
        return (columns.min().item(), rows.min().item(), columns.max().item(), rows.max().item())

    assert max(support(0)) < 112  # the upper left one of 7x7
    assert min(support(48)) > 112  # the lower right one
    left, top, right, bottom = support(24)
    assert 0 < left and 0 < top and right < 223 and bottom < 223
    assert max(support(49)) > max(support(0))  # a larger patch, of 4x4, sees more
    assert support(65) == (0, 0, 223, 223)


def test_removed_branches_leave_nothing_behind():
    sizes = [
        cost(lambda s=strides: IrregularPatchViT(NANO, branch_strides=s), 1, 3, 224, 224)
        for strides in [(2, 4, 'global'), (2, 4), (2,)]
    ]
    params, macs = zip(*sizes)
    assert sorted(params, reverse=True) == list(params) and len(set(params)) == 3
    assert sorted(macs, reverse=True) == list(macs) and len(set(macs)) == 3
    model = backbone(branch_strides=(2,)).train()
    model(torch.randn(2, 3, 64, 64))[0].square().sum().backward()
    assert not [k for k, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize(
    'strides, tokens',
    [
        ((2, 4), 65),
        ((2,), 49),
        ((4, 'global'), 17),
        (('global',), 1),
        ((1,), 196),
        ((2, 2, 2), 147),
    ],
)
def test_tokens_of_other_branches(strides, tokens):
    with torch.device('meta'):
        layer = IrregularPatchEmbed(16, (4, 6, 8, 8), branch_strides=strides)
    assert sum(rows * columns for rows, columns in layer.grids((224, 224))) == tokens


@torch.no_grad()
def test_stock_fusion_of_conv_and_bn_is_exact():
    model = redraw(backbone()).eval()
    fused = fuse_conv_bn(copy.deepcopy(model))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(fused(x)[0], model(x)[0], rtol=1e-3, atol=1e-4)


# --- fusion ---------------------------------------------------------------------------------------------------------


def fusion(tokens=9, **options):
    torch.manual_seed(0)
    layer = MODELS.build(
        dict(type='AdaptivePatchFusion', embed_dims=16, num_tokens=tokens, **options)
    )
    layer.init_weights()
    return layer


def test_fusion_starts_at_the_mean():
    layer, x = fusion(), torch.randn(2, 9, 16) * 3 + 1
    assert layer.hidden.weight.data.std() == pytest.approx(0.02, rel=0.5)
    torch.testing.assert_close(layer(x), F.layer_norm(x, (16,), eps=1e-6).mean(1))
    nn.init.normal_(layer.hidden.weight)
    torch.testing.assert_close(layer(x), F.layer_norm(x, (16,), eps=1e-6).mean(1))


@torch.no_grad()
def test_fusion_token_by_token():
    layer = redraw(fusion())
    layer.place.normal_()
    x = torch.randn(2, 9, 16)
    for b in range(2):
        t = [
            (v - v.mean()) / (v.var(correction=0) + 1e-6).sqrt() * layer.norm.weight
            + layer.norm.bias
            for v in x[b]
        ]
        shared = [p.exp() for p in layer.place.flatten()]
        own = []
        for v in t:
            h = layer.hidden.weight @ v + layer.hidden.bias
            h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
            own.append((layer.score.weight[0] @ h + layer.score.bias[0]).exp())
        products = [a * c for a, c in zip(shared, own)]
        expected = sum(p * v for p, v in zip(products, t)) / sum(products)
        torch.testing.assert_close(layer(x)[b], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_fusion_limits():
    layer, x = redraw(fusion(66)), torch.randn(3, 66, 16)
    weights = layer.weights(layer.norm(x), layer.place)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones(3, 1))
    order = torch.randperm(66)
    expected = layer(x)
    torch.testing.assert_close(layer(x[:, order], layer.place[:, order]), expected)
    layer.score.weight.zero_()
    layer.place.zero_()
    layer.place[0, 65] = 30
    torch.testing.assert_close(layer(x), layer.norm(x)[:, 65])


@torch.no_grad()
def test_fusion_as_a_neck_is_fusion_in_the_backbone():
    inside = redraw(backbone()).eval()
    raw = backbone(out_type='raw').eval()
    missing, unexpected = raw.load_state_dict(inside.state_dict(), strict=False)
    assert not missing and {k.partition('.')[0] for k in unexpected} == {'norm', 'fusion'}
    neck = fusion(6).eval()
    state = inside.state_dict()
    neck.load_state_dict(
        {k: state[k if k.startswith('norm.') else f'fusion.{k}'] for k in neck.state_dict()}
    )
    x = torch.randn(2, 3, 64, 64)
    outs = neck(raw(x))
    assert isinstance(outs, tuple)
    torch.testing.assert_close(outs[0], inside(x)[0])
    assert torch.equal(neck(raw(x)[0]), outs[0])


@pytest.mark.parametrize('mode', ['mean', 'cls_token'])
@torch.no_grad()
def test_other_fusions(mode):
    model, raw = redraw(backbone(fusion=mode)).eval(), backbone(out_type='raw').eval()
    assert model.fusion is None
    raw.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(2, 3, 64, 64)
    if mode == 'mean':
        expected = model.norm(raw(x)[0]).mean(1)
    else:
        assert model.cls_token.shape == (1, 1, 16)
        tokens, _, _ = model.patch_embed(x)
        tokens = torch.cat((model.cls_token.repeat(2, 1, 1), tokens + model.pos_embed), 1)
        for layer in model.layers:
            tokens = layer(tokens)
        expected = model.norm(tokens[:, 0])
    torch.testing.assert_close(model(x)[0], expected)


# --- the backbone ---------------------------------------------------------------------------------------------------


def test_strides_of_the_maps():
    model = backbone(out_type='featmap', out_indices=(0, 1, 2, -1)).eval()
    maps = model(torch.randn(1, 3, 224, 160))
    assert [tuple(m.shape[1:]) for m in maps] == [(6, 56, 40), (8, 28, 20), (8, 14, 10), (16, 7, 5)]


@torch.no_grad()
def test_maps_are_the_tokens_of_the_first_branch():
    model = redraw(backbone(out_type='featmap', out_indices=(3, 4))).eval()
    raw = backbone(out_type='raw', out_indices=(3, -1)).eval()
    raw.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 96)
    (first, last), (tokens, final) = model(x), raw(x)
    assert tokens.shape == (1, 2 * 3 + 2 + 1, 16)
    for i, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        torch.testing.assert_close(first[:, :, row, column], tokens[:, i])
        torch.testing.assert_close(last[:, :, row, column], model.norm(final[:, i]))


@torch.no_grad()
def test_places_of_each_grid_are_resized_on_their_own():
    model = redraw(backbone()).eval()
    assert model.grids == [(2, 2), (1, 1), (1, 1)]
    resized = resize_grids(model.pos_embed, model.grids, [(3, 4), (2, 2), (1, 1)])
    own = model.pos_embed[:, :4].mT.reshape(1, 16, 2, 2)
    expected = F.interpolate(own, (3, 4), mode='bicubic', align_corners=False)
    torch.testing.assert_close(resized[:, :12], expected.flatten(2).mT)
    constant = model.pos_embed[:, 4:5].expand(-1, 4, -1)  # a single place becomes four alike
    torch.testing.assert_close(resized[:, 12:16], constant)
    assert torch.equal(resized[:, 16:], model.pos_embed[:, 5:])
    assert resize_grids(model.pos_embed, model.grids, model.grids) is model.pos_embed
    x = torch.randn(1, 3, 96, 128)
    shifted = copy.deepcopy(model)
    shifted.fusion.place[:, :4] += 1  # constant over a grid: stays constant
    grids = [(3, 4), (2, 2), (1, 1)]
    before, after = (resize_grids(m.fusion.place, m.grids, grids) for m in (model, shifted))
    expected = torch.tensor([1.0] * 12 + [0.0] * 5)
    torch.testing.assert_close((after - before).flatten(), expected, atol=1e-5, rtol=0)
    assert model(x)[0].shape == (1, 16)


def test_a_checkpoint_of_another_image_size_is_resized():
    """It gives what the model of its own size gives for such images."""
    source = redraw(backbone(img_size=64)).eval()
    model = backbone(img_size=(128, 96)).eval()
    model.load_state_dict(source.state_dict())
    x = torch.randn(2, 3, 128, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(x), source(x))
    state = source.state_dict()
    state['pos_embed'] = state['pos_embed'][:, 1:]  # of no image size
    with pytest.raises(RuntimeError, match='size mismatch for pos_embed'):
        model.load_state_dict(state)


def test_positions_are_optional():
    model = backbone(use_pos=False)
    assert 'pos_embed' not in dict(model.named_parameters())
    assert model(torch.randn(2, 3, 64, 64))[0].shape == (2, 16)


def test_initialisation():
    model = backbone(arch={**NANO, 'embed_dims': 64}, fusion='cls_token')
    for module in model.layers.modules():
        if isinstance(module, nn.Linear):
            assert (
                module.weight.data.std() == pytest.approx(0.02, rel=0.1) and not module.bias.any()
            )
    assert model.pos_embed.data.std() == pytest.approx(0.02, rel=0.2) and model.cls_token.any()
    conv = model.patch_embed.expand_conv.conv
    assert conv.weight.data.std() == pytest.approx(math.sqrt(2 / conv.out_channels), rel=0.1)
    assert all(
        (m.weight == 1).all() and not m.bias.any()
        for m in model.modules()
        if isinstance(m, nn.BatchNorm2d)
    )


def test_checkpoint_as_init_cfg(tmp_path):
    source = redraw(backbone())
    torch.save({'state_dict': source.state_dict()}, tmp_path / 'weights.pth')
    model = backbone(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth')))
    for (name, a), b in zip(model.state_dict().items(), source.state_dict().values()):
        assert torch.equal(a, b), name


def test_drop_path_rates_rise():
    model = backbone(arch={**NANO, 'num_layers': 3}, drop_path_rate=0.2)
    assert [layer.attn.out_drop.drop_prob for layer in model.layers] == pytest.approx([0, 0.1, 0.2])


def test_frozen_stages():
    model = backbone(frozen_stages=1).train()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(
            ('patch_embed', 'pos_embed', 'layers.0')
        ), name
    assert not any(m.training for m in model.patch_embed.modules())
    assert model.layers[1].training and not model.layers[0].training


def test_layer_depths():
    model = backbone()
    depth = {
        k: model.get_layer_depth(f'backbone.{k}', 'backbone.') for k, _ in model.named_parameters()
    }
    assert {total for _, total in depth.values()} == {4}
    for name, (found, _) in depth.items():
        expected = 0 if name.startswith(('patch', 'pos')) else 3
        assert found == (int(name.split('.')[1]) + 1 if name.startswith('layers') else expected), (
            name
        )
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (3, 4)


@pytest.mark.parametrize(
    'build, message',
    [
        (lambda: backbone(arch='xl'), "'xl' is unknown, choose from"),
        (
            lambda: backbone(arch=dict(embed_dims=16)),
            'arch lacks .*num_heads.*num_layers.*stem_channels',
        ),
        (
            lambda: backbone(arch={**NANO, 'num_heads': 3}),
            'embed_dims=16 is no multiple of num_heads=3',
        ),
        (lambda: backbone(arch={**NANO, 'depth': 2}), r"unknown: \['depth'\].*num_layers"),
        (lambda: backbone(out_type='cls_token'), "out_type must be one of .*'cls_token'"),
        (lambda: backbone(fusion='max'), "fusion must be one of .*'max'"),
        (lambda: backbone(out_indices=0), r"must lie in \[3, 5\) for out_type='fused'"),
        (lambda: backbone(out_indices=5), r'\[3, 5\).*got \[5\]'),
        (lambda: backbone(out_type='featmap', out_indices=()), r'must lie in \[0, 5\)'),
        (
            lambda: backbone(out_type='featmap', branch_strides=('global', 2)),
            'grid of the first branch',
        ),
        (lambda: backbone(frozen_stages=3), r'frozen_stages must lie in \[-1, 2\]'),
        (lambda: embedding(branch_strides=()), 'at least one branch'),
        (lambda: embedding(branch_strides=(3,)), "even numbers, 1 or 'global', got 3"),
        (lambda: embedding(branch_strides=('all',)), "got 'all'"),
        (lambda: embedding(stem_channels=(4, 8)), 'four widths'),
        (lambda: fusion(66)(torch.randn(1, 81, 16)), '81 tokens for 66 places.*fused'),
    ],
)
def test_wrong_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_detector_pyramid():
    """Behind it mmdet's FPN."""
    from mmengine.registry import MODELS as ROOT
    from mmengine.registry import DefaultScope

    DefaultScope.get_instance('test', scope_name='mmdet')
    model = ROOT.build(
        dict(
            type='mmextra.IrregularPatchViT',
            arch=NANO,
            img_size=64,
            out_type='featmap',
            out_indices=(0, 1, 2, -1),
        )
    )
    neck = ROOT.build(dict(type='FPN', in_channels=[6, 8, 8, 16], out_channels=8, num_outs=5))
    outs = neck(model(torch.randn(2, 3, 64, 96)))
    assert [tuple(o.shape[2:]) for o in outs] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    sum(o.mean() for o in outs).backward()
    assert not [k for k, p in model.named_parameters() if p.grad is None]
