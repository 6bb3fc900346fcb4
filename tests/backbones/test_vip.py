"""Vision Permutator: the authors' numbers, the branches against loops, other image sizes."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS as HOST
from mmpretrain.structures import DataSample
from torch.utils.flop_counter import FlopCounterMode

from mmextra.backbones.vip import PermutatorBlock, VisionPermutator, WeightedPermuteMLP, resize

ARCH = dict(
    patch_size=4,
    layers=(1, 2, 1, 1),
    embed_dims=(16, 32, 32, 48),
    transitions=(True, False, False, False),
    segment_dims=(8, 4, 4, 4),
)
TINY = {
    'VisionPermutator': dict(
        arch=ARCH, img_size=32, size_mode='resize', out_indices=(0, 1, 2, 3), out_type='featmap'
    )
}


def classifier(init_cfg=None):
    DefaultScope.get_instance('mmpretrain', scope_name='mmpretrain')
    return HOST.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='mmextra.VisionPermutator', arch=ARCH, img_size=32),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=5, in_channels=48),
            init_cfg=init_cfg,
        )
    )


def permutator(**options):
    torch.manual_seed(0)
    model = VisionPermutator(**{**dict(arch=ARCH, img_size=32), **options})
    model.init_weights()
    return model.eval()


def layer(dim=8, side=4, **options):
    torch.manual_seed(0)
    return WeightedPermuteMLP(dim, side, **options).double()


# --- the authors' numbers ------------------------------------------------------------------------


@pytest.mark.golden('vip', 'permute_mlp*')
def test_permute_mlp(case):
    options = ('dim', 'segment_dim', 'qkv_bias', 'proj_drop')
    mlp = WeightedPermuteMLP(**{k: v for k, v in case.meta['kwargs'].items() if k in options})
    case.load(mlp).eval()
    x = case.leaf('x')
    out = mlp(x)
    if 'w' in case.inputs:
        (out * case.inputs['w']).sum().backward()
    case.check(dict(y=out))


@pytest.mark.golden('vip', 'vip_tiny*')
def test_vip_tiny(case):
    options = {'patch_size': 4, 'num_classes': 1000, **case.meta['kwargs']}  # the authors' defaults
    renamed = dict(in_chans='in_channels')
    same = ('img_size', 'skip_lam', 'qkv_bias', *renamed)
    arch = dict(
        patch_size=options['patch_size'],
        layers=options['layers'],
        embed_dims=options['embed_dims'],
        transitions=options['transitions'],
        segment_dims=options['segment_dim'],
        mlp_ratios=options['mlp_ratios'],
    )
    DefaultScope.get_instance('mmpretrain', scope_name='mmpretrain')
    model = HOST.build(
        dict(
            type='ImageClassifier',
            backbone=dict(
                type='mmextra.VisionPermutator',
                arch=arch,
                **{renamed.get(k, k): v for k, v in options.items() if k in same},
            ),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='LinearClsHead',
                num_classes=options['num_classes'],
                in_channels=options['embed_dims'][-1],
            ),
        )
    )
    case.load(model, layout='vip')
    model.eval()
    seen = {}

    def keep(name):
        return lambda module, inputs, out: seen.update({name: out})

    model.backbone.patch_embed.register_forward_hook(keep('embed'))
    for i, module in enumerate(model.backbone.network):
        module = module[-1] if isinstance(module, torch.nn.Sequential) else module
        module.register_forward_hook(keep(f'network_{i}'))
    with torch.no_grad():
        seen['logits'] = model(case.inputs['x'], mode='tensor')
    case.check(seen)


# --- the numbers of the paper --------------------------------------------------------------------


@pytest.mark.parametrize(
    'arch, parameters, gmacs',
    [
        ('s14', 29_892_904, 6.86),
        ('s7', 25_114_984, 6.90),
        ('m7', 55_272_488, 16.28),
        ('l7', 87_784_936, 24.34),
    ],
)
def test_parameters_and_macs(arch, parameters, gmacs):
    with torch.device('meta'):
        backbone = VisionPermutator(arch).eval().requires_grad_(False)
        head = torch.nn.Linear(backbone.embed_dims, 1000)
        with FlopCounterMode(display=False) as counter:
            head(backbone(torch.empty(1, 3, 224, 224))[-1].mean((2, 3)))
    assert sum(p.numel() for m in (backbone, head) for p in m.parameters()) == parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.005)


def test_shapes_of_s7():
    with torch.device('meta'):
        backbone = VisionPermutator('s7', out_indices=(0, 1, 2, 3)).eval()
        outs = backbone(torch.empty(2, 3, 224, 224))
    assert [tuple(o.shape) for o in outs] == [(2, 192, 32, 32)] + 3 * [(2, 384, 16, 16)]


# --- Permute-MLP ---------------------------------------------------------------------------------


def looped(mlp, x):
    """Every output number as the sum that the paper writes."""
    batch, height, width, dim = x.shape
    segments = mlp.segment_dim
    size = dim // segments
    h, w, c = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x)
    for b, i, j, q, s in itertools.product(*map(range, (batch, height, width, segments, size))):
        out = q * size + s
        for k, t in itertools.product(range(segments), range(size)):
            source = q * size + t
            h[b, i, j, out] += mlp.mlp_h.weight[i * size + s, k * size + t] * x[b, k, j, source]
            w[b, i, j, out] += mlp.mlp_w.weight[j * size + s, k * size + t] * x[b, i, k, source]
        c[b, i, j, out] = mlp.mlp_c.weight[out] @ x[b, i, j]
    mean = (h + w + c).mean((1, 2))
    weights = mlp.reweight(mean).view(batch, dim, 3).softmax(2)[:, None, None]
    return mlp.proj(h * weights[..., 0] + w * weights[..., 1] + c * weights[..., 2])


@torch.no_grad()
def test_permute_mlp_equals_loops():
    mlp, x = layer(), torch.randn(2, 4, 4, 8).double()
    torch.testing.assert_close(mlp(x), looped(mlp, x))


@torch.no_grad()
def test_branches_mix_within_a_column_or_row_and_a_segment():
    mlp, x = layer(12, 4), torch.randn(1, 4, 4, 12).double()
    other = x.clone()
    other[0, 1, 2, 7] += 1  # row 1, column 2, segment 7 // 3
    changed = [
        (a - b)[0].unflatten(2, (4, 3)).abs().sum(-1) > 0
        for a, b in zip(mlp.grid_branches(other), mlp.grid_branches(x))
    ]
    for branch, column in zip(changed, (True, False)):
        expected = torch.zeros(4, 4, 4, dtype=torch.bool)
        if column:
            expected[:, 2, 2] = True
        else:
            expected[1, :, 2] = True
        assert torch.equal(branch, expected)


@torch.no_grad()
def test_layer_is_not_translation_equivariant():
    mlp, x = layer(), torch.randn(1, 4, 4, 8).double()
    assert not torch.allclose(mlp(x.roll(1, 1)), mlp(x).roll(1, 1), atol=1e-3)


@torch.no_grad()
def test_transposition_exchanges_height_and_width():
    mlp, x = layer(), torch.randn(2, 4, 4, 8).double()
    swapped = layer()
    swapped.load_state_dict(mlp.state_dict())
    swapped.mlp_h, swapped.mlp_w = swapped.mlp_w, swapped.mlp_h
    for parameter in (swapped.reweight.fc2.weight, swapped.reweight.fc2.bias):
        parameter.copy_(parameter.unflatten(0, (8, 3))[:, [1, 0, 2]].flatten(0, 1))
    torch.testing.assert_close(swapped(x.transpose(1, 2)), mlp(x).transpose(1, 2))


@torch.no_grad()
def test_channel_branch_alone():
    mlp, x = layer(), torch.randn(2, 4, 4, 8).double()
    for parameter in (mlp.mlp_h.weight, mlp.mlp_w.weight, *mlp.reweight.parameters()):
        parameter.zero_()
    torch.testing.assert_close(mlp(x), mlp.proj(mlp.mlp_c(x) / 3))


def test_gradients():
    mlp, x = layer(4, 2, qkv_bias=True), torch.randn(1, 2, 2, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(mlp, x)


@torch.no_grad()
def test_resized_grids():
    """Branches on the resized grid, resized back; the channels are mixed where they are."""
    mlp, x = layer(size_mode='resize'), torch.randn(2, 6, 5, 8).double()
    small = resize(x, (4, 4))
    torch.testing.assert_close(
        small,
        F.interpolate(x.permute(0, 3, 1, 2), (4, 4), mode='bilinear', align_corners=False).permute(
            0, 2, 3, 1
        ),
    )
    strict = layer()
    h, w = (resize(branch, (6, 5)) for branch in strict.grid_branches(small))
    c = strict.mlp_c(x)
    weights = strict.reweight((h + w + c).mean((1, 2))).view(2, 8, 3).softmax(2)[:, None, None]
    expected = strict.proj(h * weights[..., 0] + w * weights[..., 1] + c * weights[..., 2])
    torch.testing.assert_close(mlp(x), expected)
    exact = torch.randn(2, 4, 4, 8).double()
    assert torch.equal(mlp(exact), strict(exact))
    with pytest.raises(ValueError, match='size_mode'):
        strict(x)


@torch.no_grad()
def test_block_follows_the_formula():
    block, x = PermutatorBlock(8, 4, skip_lam=3.0).eval(), torch.randn(2, 4, 4, 8)
    expected = x + block.attn(block.norm1(x)) / 3
    expected = expected + block.mlp(block.norm2(expected)) / 3
    torch.testing.assert_close(block(x), expected)
    assert block.mlp.fc1.out_features == 24


# --- backbone ------------------------------------------------------------------------------------


def test_a_transition_comes_where_size_or_width_changes():
    sizes = [tuple(m.proj.kernel_size) for m in permutator().network if hasattr(m, 'proj')]
    assert sizes == [(2, 2), (1, 1)]
    with torch.device('meta'):
        lengths = [len(VisionPermutator(arch).network) for arch in ('s14', 's7', 'm7')]
    assert lengths == [4, 5, 5]


def test_stochastic_depth_grows_linearly():
    model = VisionPermutator(ARCH, img_size=32, drop_path_rate=0.4)
    stages = [model.network[i] for i in model.stage_positions]
    rates = [getattr(b.drop_path, 'drop_prob', 0.0) for stage in stages for b in stage]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_output_types():
    x = torch.randn(2, 3, 32, 32)
    maps = permutator(out_indices=(0, 3))(x)
    pooled = permutator(out_indices=(0, -1), out_type='avg_featmap')(x)
    for featmap, mean in zip(maps, pooled):
        torch.testing.assert_close(mean, featmap.mean((2, 3)))
    torch.testing.assert_close(maps[1].mean(1), torch.zeros(2, 4, 4), atol=1e-5, rtol=0)


def test_sizes_are_strict_unless_asked():
    model, x = permutator(), torch.randn(1, 3, 40, 48)
    with pytest.raises(ValueError, match='size_mode'):
        model(x)
    free = permutator(size_mode='resize', img_size=100, out_indices=(0, 3))
    assert [tuple(o.shape[2:]) for o in free(x)] == [(10, 12), (5, 6)]
    square = torch.randn(1, 3, 32, 32)
    assert torch.equal(free(square)[1], model(square)[0])
    with pytest.raises(ValueError, match='segment_dims'):
        permutator(img_size=64)


@torch.no_grad()
def test_sizes_that_are_no_whole_number_of_tokens():
    """With 'resize' the maps cover the image, padded with zeros; 'strict' drops the rest."""
    x, free = torch.randn(1, 3, 33, 39), permutator(size_mode='resize', out_indices=(0, 3))
    assert [tuple(out.shape[2:]) for out in free(x)] == [(9, 10), (5, 5)]
    torch.testing.assert_close(free(F.pad(x, (0, 1, 0, 3))), free(x))
    strict = permutator(img_size=35)
    torch.testing.assert_close(strict(x[..., :35]), strict(x[..., :32, :32]))


def test_classifier_with_stock_neck_and_head():
    DefaultScope.get_instance('mmpretrain', scope_name='mmpretrain')
    model = HOST.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='mmextra.VisionPermutator', arch=ARCH, img_size=32),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='LinearClsHead',
                num_classes=5,
                in_channels=48,
                loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
                cal_acc=False,
            ),
            train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8)]),
            data_preprocessor=dict(num_classes=5),
        )
    )
    model.init_weights()
    samples = [DataSample().set_gt_label(i) for i in (1, 2)]
    data = dict(inputs=torch.randn(2, 3, 32, 32), data_samples=samples)
    data = model.data_preprocessor(data, training=True)
    model(**data, mode='loss')['loss'].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_depths_of_layers():
    model = permutator()
    depths = {
        'patch_embed.proj.weight': 0,
        'network.0.0.norm1.weight': 1,
        'network.1.proj.weight': 2,
        'network.2.1.norm1.weight': 3,
        'network.4.proj.weight': 5,
        'network.5.0.norm1.weight': 5,
        'norm.weight': 6,
    }
    names = dict(model.named_parameters())
    for name, depth in depths.items():
        assert name in names and model.get_layer_depth(f'b.{name}', 'b.') == (depth, 7)
    assert model.get_layer_depth('head.fc.weight', 'b.') == (6, 7)


@pytest.mark.parametrize(
    'options, name',
    [
        (dict(arch='xl'), 'xl'),
        (dict(arch=dict(layers=(1, 1, 1, 1))), 'embed_dims'),
        (dict(arch=dict(ARCH, depth=3)), 'depth'),
        (dict(arch=dict(ARCH, layers=(1, 1))), 'layers'),
        (dict(arch=dict(ARCH, embed_dims=(18, 32, 32, 32))), 'segment_dim'),
        (dict(size_mode='crop'), 'size_mode'),
        (dict(out_type='cls_token'), 'out_type'),
        (dict(out_indices=4), 'out_indices'),
        (dict(frozen_stages=5), 'frozen_stages'),
        (dict(frozen_stages=-2), 'frozen_stages'),
    ],
)
def test_bad_arguments_are_named(options, name):
    with pytest.raises(ValueError, match=name):
        permutator(**options)


def test_official_files_load(tmp_path):
    """Wrapped as published, into the classifier or its backbone alone, and not initialised over."""
    torch.manual_seed(0)
    source = classifier()
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter)
    official = {
        k.removeprefix('backbone.').replace('head.fc', 'head'): v
        for k, v in source.state_dict().items()
    }
    file = tmp_path / 'official.pth.tar'
    torch.save(dict(state_dict={f'module.{k}': v for k, v in official.items()}), file)
    init_cfg = dict(type='mmextra.OfficialCheckpoint', checkpoint=str(file))
    whole, part = classifier(init_cfg), VisionPermutator(ARCH, 32, init_cfg=init_cfg)
    whole.init_weights()
    part.init_weights()
    for ours, theirs in ((whole, source), (part, source.backbone)):
        expected = theirs.state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in ours.state_dict().items())
    official.pop('norm.bias')
    torch.save(official, file)
    with pytest.raises(ValueError, match='norm.bias'):
        classifier(init_cfg).init_weights()
