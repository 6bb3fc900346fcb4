"""DS-Net: the numbers of the published code, the streams one by one, and the backbone in mmdet and mmseg."""

import copy
import math
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import fuse_conv_bn
from mmengine.config import Config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import mmextra.registry  # noqa: F401  `mmextra::` and host bases of configs
from mmextra.backbones.dsnet import DSBlock, DSNet
from mmextra.engine.checkpoint import load_official
from mmextra.registry import MODELS

CONFIGS = Path(__file__).parents[2] / 'configs' / 'dsnet'
NANO = dict(embed_dims=(8, 12, 16, 24), depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 3), mlp_ratio=2)
TINY = {
    'DSNet': dict(arch=NANO, out_indices=(0, 1, 2, 3)),
    'DSBlock': dict(embed_dims=8, num_heads=2, reduction=2),
    'DSFPN': dict(in_channels=[8, 12, 16, 24], out_channels=16, num_outs=5),
}


def block(dims=8, heads=2, reduction=2, **options):
    """A block with every weight drawn anew, in eval mode."""
    torch.manual_seed(0)
    layer = DSBlock(dims, heads, reduction, **options).eval()
    return redraw(layer)


def redraw(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    for name, buffer in module.named_buffers():
        if name.endswith(('running_mean', 'running_var')):
            buffer.uniform_(0.5, 1.5)
    return module


def dsnet(**options):
    torch.manual_seed(0)
    return DSNet(**{**TINY['DSNet'], **options})


# --- the numbers of the published code ------------------------------------------------------------------------------


@pytest.mark.golden('dsnet', 'ds_block*')
def test_block(case):
    options = dict(case.meta['kwargs'])
    layer = DSBlock(
        options['dim'],
        options['num_heads'],
        options['downsample'],
        mlp_ratio=options.get('mlp_ratio', 4.0),
        # The published block has these biases whatever its argument says.
        qkv_bias='channel_up.bias' in case.state,
        qk_scale=options.get('qk_scale'),
        conv_ffn=options.get('conv_ffn', False),
    )
    case.load(layer, layout='dsnet').eval()
    out = layer(case.leaf('x'))
    (out * case.inputs['w']).sum().backward()
    case.check(dict(y=out))


@pytest.mark.golden('dsnet', 'dsnet_*')
def test_whole_model(case):
    options = dict(case.meta['kwargs'])
    arch = dict(embed_dims=options['embed_dim'], depths=options['depth'])
    arch.update(num_heads=options['num_heads'], mlp_ratio=options.get('mlp_ratio', 4.0))
    backbone = dict(
        type='mmextra.DSNet',
        arch=arch,
        in_channels=options.get('in_chans', 3),
        out_indices=(0, 1, 2, 3),
        qkv_bias='blocks1.0.channel_up.bias' in case.state,
        qk_scale=options.get('qk_scale'),
        overlap_embed=options.get('overlap_embed', False),
        conv_ffn=options.get('conv_ffn', False),
    )
    model = case.load(classifier(backbone, options['num_classes']), layout='dsnet').eval()
    x = case.inputs['x_int8'].float() / 4
    maps = model.backbone(x)
    outs = dict(features=maps[3], logits=model(x))
    model.backbone.norm = nn.Identity()
    outs['stage4'] = model.backbone(x)[3]
    for i in range(3):
        step = [
            round(a / b) for a, b in zip(maps[i].shape[2:], case.outputs[f'stage{i + 1}'].shape[2:])
        ]
        outs[f'stage{i + 1}'] = maps[i][:, :, :: step[0], :: step[1]]
    case.check(outs)


def classifier(backbone, num_classes):
    from mmpretrain.registry import MODELS as HOST

    arch = backbone['arch']
    return HOST.build(
        dict(
            type='ImageClassifier',
            backbone=backbone,
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='LinearClsHead', num_classes=num_classes, in_channels=arch['embed_dims'][3]
            ),
        )
    )


@pytest.mark.parametrize(
    'arch, params, macs',
    [('t', 10_534_312, 1.83e9), ('s', 23_004_552, 3.55e9), ('b', 49_343_752, 8.29e9)],
)
def test_size_and_cost(arch, params, macs):
    with torch.device('meta'):
        model, head = DSNet(arch), nn.Linear(512, 1000)
    assert sum(p.numel() for m in (model, head) for p in m.parameters()) == params
    once, blocks = costs_at_224()
    extra = sum((depth - 1) * cost for depth, cost in zip(model.depths, blocks))
    assert once + extra + 512_000 == pytest.approx(macs, rel=5e-3)


@cache
def costs_at_224():
    """Multiply-adds of a DS-Net with one block in each stage, and of a block of each stage."""
    shapes, blocks = [(64, 56, 56), (128, 28, 28), (320, 14, 14), (512, 7, 7)], []
    with torch.device('meta'), torch.no_grad():
        model = DSNet(
            {**DSNet.arch_zoo['s'], 'depths': (1, 1, 1, 1)}, out_indices=(0, 1, 2, 3)
        ).eval()
        with FlopCounterMode(display=False) as counter:
            maps = model(torch.empty(1, 3, 224, 224))
        assert [tuple(m.shape[1:]) for m in maps] == shapes
        for stage, out in zip(model.stages, maps):
            with FlopCounterMode(display=False) as of_block:
                stage[0](out)
            blocks.append(of_block.get_total_flops() / 2)
    return counter.get_total_flops() / 2, blocks


# --- the block ------------------------------------------------------------------------------------------------------


def slow_block(layer, x):
    """The whole block, position by position."""
    w = {k: v.double() for k, v in layer.state_dict().items()}

    def pointwise(x, name):  # x: (channels, H, W)
        height, width = x.shape[1:]
        weight = w[f'{name}.weight'].flatten(1)
        columns = [
            weight @ x[:, i, j] + w[f'{name}.bias'] for i in range(height) for j in range(width)
        ]
        return torch.stack(columns, 1).view(-1, height, width)

    def depthwise(x, name):
        weight, out, padded = w[f'{name}.weight'], torch.empty_like(x), F.pad(x, (1, 1, 1, 1))
        for c, i, j in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
            out[c, i, j] = (padded[c, i : i + 3, j : j + 3] * weight[c, 0]).sum() + w[
                f'{name}.bias'
            ][c]
        return out

    def batch_norm(x, name):
        mean, var = w[f'{name}.running_mean'], w[f'{name}.running_var']
        gain = w[f'{name}.weight'] / (var + 1e-5).sqrt()
        return (x - mean[:, None, None]) * gain[:, None, None] + w[f'{name}.bias'][:, None, None]

    def layer_norm(tokens, name):
        rows = [(t - t.mean()) / (t.var(correction=0) + 1e-5).sqrt() for t in tokens]
        return torch.stack(rows) * w[f'{name}.weight'] + w[f'{name}.bias']

    def linear(tokens, name):
        return tokens @ w[f'{name}.weight'].T + w[f'{name}.bias']

    def bilinear(x, size):
        def taps(i, source, target):
            at = max((i + 0.5) * source / target - 0.5, 0)
            low = math.floor(at)
            return (low, 1 - at + low), (min(low + 1, source - 1), at - low)

        out = x.new_zeros(len(x), *size)
        for i in range(size[0]):
            for j in range(size[1]):
                for row, a in taps(i, x.shape[1], size[0]):
                    for column, b in taps(j, x.shape[2], size[1]):
                        out[:, i, j] += a * b * x[:, row, column]
        return out

    def attend(q, k, v):  # (tokens, channels)
        rows = []
        for query in q:
            heads = []
            for one, keys, values in zip(*(t.chunk(layer.num_heads, -1) for t in (query, k, v))):
                weights = torch.stack([one @ key / math.sqrt(len(one)) for key in keys]).softmax(0)
                heads.append(sum(a * value for a, value in zip(weights, values)))
            rows.append(torch.cat(heads))
        return torch.stack(rows)

    outs = []
    for image in x.double():
        x = image  # (C, H, W)
        size = x.shape[1:]
        half, grid = len(x) // 2, [max(side // layer.reduction, 1) for side in size]
        x = x + depthwise(x, 'pos_conv')
        z = pointwise(batch_norm(x, 'norm1'), 'conv_in')
        g, local = z[:half], z[half:]
        local = local + depthwise(batch_norm(local, 'local_norm'), 'local_conv')
        g = bilinear(g, grid).flatten(1).T
        g = g + attend(*linear(layer_norm(g, 'global_norm'), 'global_qkv').chunk(3, -1))
        of_local = pointwise(batch_norm(local, 'local_cross_norm'), 'local_cross_qkv').flatten(1).T
        of_global = linear(layer_norm(g, 'global_cross_norm'), 'global_cross_qkv')
        (ql, kl, vl), (qg, kg, vg) = of_local.chunk(3, -1), of_global.chunk(3, -1)
        local = local + linear(attend(ql, kg, vg), 'local_fuse').T.reshape(local.shape)
        g = g + linear(attend(qg, kl, vl), 'global_fuse')
        g = bilinear(g.T.reshape(half, *grid), size)
        x = x + pointwise(torch.cat((local, g)), 'conv_out')
        x = x + pointwise(F.gelu(pointwise(batch_norm(x, 'norm2'), 'mlp.fc1')), 'mlp.fc2')
        outs.append(x)
    return torch.stack(outs)


@pytest.mark.parametrize('size, reduction', [((5, 4), 2), ((2, 3), 4), ((3, 3), 1)])
@torch.no_grad()
def test_block_position_by_position(size, reduction):
    layer = block(reduction=reduction, mlp_ratio=1)
    x = torch.randn(2, 8, *size)
    torch.testing.assert_close(layer.double()(x.double()), slow_block(layer, x))


@torch.no_grad()
def test_without_exchange_and_attention_the_block_is_two_convolutions():
    layer = block(reduction=1, mlp_ratio=0)
    for linear in (layer.local_fuse, layer.global_fuse):
        linear.weight.zero_(), linear.bias.zero_()
    layer.global_qkv.weight[-4:] = 0  # the values
    layer.global_qkv.bias[-4:] = 0
    swap = torch.eye(8).roll(4, 1)  # (local, global) back to (global, local)
    layer.conv_out.weight.copy_(swap[:, :, None, None])
    layer.conv_out.bias.zero_()
    x = torch.randn(2, 8, 6, 5)
    res = x + layer.pos_conv(x)
    z = layer.conv_in(layer.norm1(res))
    detail = layer.local_conv(layer.local_norm(z[:, 4:]))
    expected = res + z + F.pad(detail, (0, 0, 0, 0, 4, 0))
    torch.testing.assert_close(layer(x), expected)


@torch.no_grad()
def test_split_is_global_first_and_concatenation_local_first():
    layer = block(reduction=1)
    silence_local(layer)
    pattern = torch.randn(2, 4, 6, 5)
    out = layer.mix(torch.cat((pattern, torch.zeros_like(pattern)), 1))
    assert torch.equal(out[:, :4], torch.zeros_like(pattern))
    assert out[:, 4:].std() > 0.1
    out = layer.mix(torch.cat((torch.zeros_like(pattern), pattern), 1))
    assert out[:, :4].std() > 0.1


def silence_local(layer):
    """Keep a local stream of zeros at zero, with nothing to say to the global one."""
    for name in ('local_norm', 'local_conv', 'local_cross_norm', 'local_cross_qkv', 'local_fuse'):
        for parameter in getattr(layer, name).parameters():
            parameter.zero_()


@torch.no_grad()
def test_constant_global_stream_stays_constant():
    """Softmax weights sum to one, so equal values stay equal: also across streams, where queries are equal."""
    layer = block(reduction=2)
    z = torch.randn(2, 8, 6, 4)
    z[:, :4] = torch.randn(2, 4, 1, 1)
    out = layer.mix(z)
    assert out[:, :4].std((2, 3)).min() > 0.1
    torch.testing.assert_close(out[:, 4:], out[:, 4:, :1, :1].expand(-1, -1, 6, 4))


@torch.no_grad()
def test_global_stream_sees_everything_and_the_local_one_alone_does_not():
    x = torch.randn(1, 8, 16, 16)
    far = x.clone()
    far[..., :4, :4] += 1
    for streams, reached in (('both', True), ('global', True), ('local', False)):
        layer = block(reduction=4, streams=streams)
        change = (layer(far) - layer(x))[..., 12:, 12:].abs().max()
        assert (change > 1e-4) == reached, streams


@pytest.mark.parametrize('streams', ['local', 'global'])
def test_single_streams_have_no_other(streams):
    layer = block(streams=streams)
    names = {k.partition('.')[0] for k in layer.state_dict()}
    assert not any('cross' in k or 'fuse' in k for k in names)
    other = dict(local='global', **{'global': 'local'})[streams]
    assert not any(k.startswith(other) for k in names)
    assert layer(torch.randn(2, 8, 5, 7)).shape == (2, 8, 5, 7)


def test_dropout_of_the_attention_is_on_by_default():
    layer = block(drop_path_rate=0.0).train()
    x = torch.randn(2, 8, 8, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.attn_drop_rate = 0.0
    assert torch.equal(layer(x), layer(x))
    assert DSNet().stages[0][0].attn_drop_rate == 0.1


def test_gradient():
    layer = block(4, 1, mlp_ratio=1).double()
    x = torch.randn(1, 4, 3, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,), fast_mode=True)


# --- the backbone ---------------------------------------------------------------------------------------------------


def test_drop_path_rates():
    def rates(mode):
        with torch.device('meta'):
            model = DSNet('t', drop_path_rate=0.1, dpr_mode=mode)
        return [[b.drop_path.drop_prob for b in stage] for stage in model.stages]

    assert rates('published') == [
        pytest.approx(stage)
        for stage in ([0, 0.0125], [0, 0.0125], [0, 0.0125, 0.025, 0.0375], [0])
    ]
    flat = sum(rates('cumulative'), [])
    assert flat == pytest.approx([i / 80 for i in range(9)])


@pytest.mark.parametrize('size', [(64, 64), (33, 50), (9, 70), (3, 3), (1, 40)])
@pytest.mark.parametrize('overlap', [False, True])
def test_any_size(size, overlap):
    maps = dsnet(overlap_embed=overlap).eval()(torch.randn(1, 3, *size))
    for i, out in enumerate(maps):
        sides = [math.ceil(side / 4) for side in size]
        for _ in range(i):
            sides = [math.ceil(s / 2) if overlap else max(s // 2, 1) for s in sides]
        assert tuple(out.shape[2:]) == tuple(sides)


@torch.no_grad()
def test_padding_is_with_zeros_at_the_right_and_the_bottom():
    model, x = dsnet().eval(), torch.randn(1, 3, 61, 34)
    for a, b in zip(model(x), model(F.pad(x, (0, 2, 0, 3)))):
        assert torch.equal(a, b)


def test_overlapping_embeddings_and_convolutional_mlp():
    model = dsnet(overlap_embed=True, conv_ffn=True)
    shapes = [(*m.kernel_size, *m.stride, *m.padding) for m in model.patch_embeds]
    assert shapes == [(7, 7, 4, 4, 3, 3)] + [(3, 3, 2, 2, 1, 1)] * 3
    mlp = model.stages[0][0].mlp
    assert mlp.dwconv.weight.shape == (16, 1, 3, 3)
    x = torch.randn(1, 8, 4, 4)
    torch.testing.assert_close(mlp(x), mlp.fc2(F.gelu(mlp.dwconv(mlp.fc1(x)))))


@torch.no_grad()
def test_final_norm_and_early_stop():
    model = dsnet().eval()
    redraw(model.norm)
    x = torch.randn(1, 3, 32, 32)
    bare = dsnet(final_norm=False).eval()
    assert set(model.state_dict()) - set(bare.state_dict()) == {
        f'norm.{k}' for k in model.norm.state_dict()
    }
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith('norm.')})
    torch.testing.assert_close(model(x)[3], model.norm(bare(x)[3]))
    ran = []
    model.out_indices = (1,)
    for i, stage in enumerate(model.stages):
        stage[0].register_forward_hook(lambda *_, i=i: ran.append(i))
    model(x)
    assert ran == [0, 1]


def test_frozen_stages_and_norm_eval():
    model = dsnet(frozen_stages=2).train()
    for name, parameter in model.named_parameters():
        frozen = name.startswith(('patch_embeds.0', 'patch_embeds.1', 'stages.0', 'stages.1'))
        assert parameter.requires_grad != frozen, name
    assert not model.stages[1][0].norm1.training and model.stages[2][0].norm1.training
    only_stem = dsnet(frozen_stages=0)
    assert {k for k, p in only_stem.named_parameters() if not p.requires_grad} == {
        'patch_embeds.0.weight',
        'patch_embeds.0.bias',
    }
    model = dsnet(norm_eval=True).train()
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert model.stages[0][0].training
    assert dsnet().train(False).eval() is not None


@pytest.mark.parametrize('streams', ['both', 'local', 'global'])
@torch.no_grad()
def test_stock_fusion_of_conv_and_bn_leaves_the_function_alone(streams):
    """Norms stand before convolutions: there is nothing to fold, whatever the order of the modules."""
    model, x = redraw(dsnet(streams=streams)).eval(), torch.randn(1, 3, 64, 64)
    fused = fuse_conv_bn(copy.deepcopy(model))
    for a, b in zip(fused(x), model(x)):
        torch.testing.assert_close(a, b)


def test_recomputed_blocks_update_batch_statistics_once():
    models = [dsnet(with_cp=with_cp, attn_drop_rate=0.0).train() for with_cp in (False, True)]
    for model in models:
        sum(
            out.square().mean() for out in model(torch.ones(2, 3, 32, 32).cumsum(-1) / 9)
        ).backward()
    for (name, a), b in zip(models[0].named_buffers(), models[1].buffers()):
        torch.testing.assert_close(a, b, msg=name)


def test_initialisation():
    model = dsnet()
    before = model.stages[0][0].conv_in.weight.clone()
    model.init_weights()
    assert torch.equal(model.stages[0][0].conv_in.weight, before)
    weights = [m.weight.detach().flatten() for m in model.modules() if isinstance(m, nn.Linear)]
    weights = torch.cat(weights)
    assert weights.std() == pytest.approx(0.02, rel=0.1) and weights.abs().max() <= 2
    assert all(not m.bias.any() for m in model.modules() if isinstance(m, nn.Linear))


def test_layer_depths():
    model = dsnet()
    depth = {k: model.get_layer_depth(f'backbone.{k}', 'backbone.') for k in model.state_dict()}
    assert {total for _, total in depth.values()} == {7}
    expected = {
        'patch_embeds.0.weight': 0,
        'stages.0.0.norm1.weight': 1,
        'patch_embeds.1.weight': 2,
        'stages.2.0.mlp.fc1.bias': 3,
        'stages.2.1.mlp.fc1.bias': 4,
        'patch_embeds.3.bias': 5,
        'norm.weight': 6,
    }
    assert {k: depth[k][0] for k in expected} == expected
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (6, 7)


# --- checkpoints ----------------------------------------------------------------------------------------------------


def published_keys(state):
    """Our keys in the words of the published code, written out independently of the layout."""
    words = {
        'pos_conv': 'pos_embed',
        'norm1': 'norm1',
        'conv_in': 'conv1',
        'local_norm': 'norm_conv1',
        'local_conv': 'conv',
        'global_norm': 'norm_sa1',
        'global_qkv': 'channel_up',
        'local_cross_norm': 'norm_conv2',
        'local_cross_qkv': 'cross_channel_up_conv',
        'local_fuse': 'fuse_channel_conv',
        'global_cross_norm': 'norm_sa2',
        'global_cross_qkv': 'cross_channel_up_sa',
        'global_fuse': 'fuse_channel_sa',
        'conv_out': 'conv2',
        'norm2': 'norm2',
        'mlp': 'mlp',
    }
    mapped = {}
    for key, value in state.items():
        part, *rest = key.split('.')
        if part == 'patch_embeds':
            mapped[f'patch_embed{int(rest[0]) + 1}.proj.{rest[1]}'] = value
        elif part == 'stages':
            path = [f'blocks{int(rest[0]) + 1}', rest[1], words[rest[2]], *rest[3:]]
            mapped['.'.join(path).replace('mlp.dwconv', 'mlp.dwconv.dwconv')] = value
        else:
            mapped[key] = value
    return mapped


def test_official_checkpoint_file(tmp_path):
    source = redraw(dsnet(conv_ffn=True))
    state = {
        **published_keys(source.state_dict()),
        'head.weight': torch.ones(5, 24),
        'head.bias': torch.ones(5),
    }
    torch.save({'model': state}, tmp_path / 'dsnet.pth')
    init_cfg = dict(type='mmextra.OfficialCheckpoint', checkpoint=str(tmp_path / 'dsnet.pth'))
    model = dsnet(conv_ffn=True, init_cfg=init_cfg)
    model.init_weights()
    for (name, a), b in zip(model.state_dict().items(), source.state_dict().values()):
        assert torch.equal(a, b), name
    state.pop('blocks3.1.conv.bias')
    with pytest.raises(ValueError, match='missing: stages.2.1.local_conv.bias'):
        load_official(dsnet(conv_ffn=True), state, 'dsnet')


def test_paddle_weights():
    source = redraw(dsnet())
    linear = {f'{k}.weight' for k, m in source.named_modules() if isinstance(m, nn.Linear)}
    state = {k: v.T if k in linear else v for k, v in source.state_dict().items()}
    state = published_keys(
        {k: v for k, v in state.items() if not k.endswith('num_batches_tracked')}
    )
    state = {
        k.replace('running_mean', '_mean').replace('running_var', '_variance'): v
        for k, v in state.items()
    }
    model = dsnet()
    load_official(
        model, {**state, 'head.weight': torch.ones(24, 5), 'head.bias': torch.ones(5)}, 'dsnet'
    )
    for (name, a), b in zip(model.state_dict().items(), source.state_dict().values()):
        assert torch.equal(a, b), name


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'build, message',
    [
        (lambda: DSBlock(9, 1, 2), 'embed_dims must be even.*got 9'),
        (
            lambda: DSBlock(8, 3, 2),
            '4 channels of the global stream are no multiple of num_heads=3',
        ),
        (lambda: DSBlock(8, 1, 0), 'reduction must be at least 1'),
        (lambda: DSBlock(8, 1, 2, streams='none'), "'both', 'local' or 'global', got 'none'"),
        (lambda: DSNet('xl'), "'xl' is unknown, choose from"),
        (lambda: DSNet({**NANO, 'depths': (1, 2)}), r"arch\['depths'\] must be four numbers"),
        (lambda: DSNet(dict(embed_dims=(8,) * 4, depths=(1,) * 4)), r"arch\['num_heads'\].*None"),
        (lambda: DSNet({**NANO, 'mlp': 3}), r"unknown: \['mlp'\].*mlp_ratio"),
        (lambda: dsnet(reductions=(8, 4)), 'reductions must be four numbers'),
        (lambda: dsnet(out_indices=(4,)), 'out_indices must be some of 0, 1, 2, 3'),
        (lambda: dsnet(frozen_stages=5), 'frozen_stages must lie in'),
        (lambda: dsnet(dpr_mode='linear'), "'cumulative' or 'published', got 'linear'"),
    ],
)
def test_wrong_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# --- DS-FPN, detectors and segmentors -------------------------------------------------------------------------------


def dsfpn(**options):
    torch.manual_seed(0)
    return MODELS.build(dict(type='DSFPN', **{**TINY['DSFPN'], **options}))


def maps(channels=(8, 12, 16, 24), size=(16, 24)):
    return tuple(
        torch.randn(2, c, max(size[0] >> i, 1), max(size[1] >> i, 1))
        for i, c in enumerate(channels)
    )


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(num_outs=4),
        dict(start_level=1, add_extra_convs='on_output'),
        dict(start_level=1, add_extra_convs='on_input', relu_before_extra_convs=True),
        dict(start_level=0, end_level=2, num_outs=3),
        dict(norm_cfg=dict(type='GN', num_groups=2)),
    ],
)
def test_dsfpn_gives_what_fpn_gives(options):
    from mmdet.models.necks import FPN

    ours, stock = dsfpn(**options), FPN(**{**TINY['DSFPN'], **options})
    x = maps()
    assert [o.shape for o in ours(x)] == [o.shape for o in stock(x)]


@torch.no_grad()
def test_dsfpn_levels_pass_a_block_before_the_output_convolution():
    from mmdet.models.necks import FPN

    ours = redraw(dsfpn(start_level=1, add_extra_convs='on_lateral')).eval()
    blocks = [conv[0] for conv in ours.fpn_convs[:3]]
    assert [b.reduction for b in blocks] == [4, 2, 1]
    assert all(b.mlp is None and b.num_heads == 8 for b in blocks)
    assert not any(isinstance(m, DSBlock) for m in ours.fpn_convs[3:].modules())
    stock = FPN(**TINY['DSFPN'], start_level=1, add_extra_convs='on_lateral').eval()
    sums = {}
    for i, conv in enumerate(stock.fpn_convs[:3]):
        conv.register_forward_pre_hook(lambda _, args, i=i: sums.update({i: args[0]}))
    state = {re.sub(r'(fpn_convs\.\d)\.1', r'\1', k): v for k, v in ours.state_dict().items()}
    stock.load_state_dict({k: state[k] for k in stock.state_dict()})
    x = maps()
    outs, plain = ours(x), stock(x)
    for i in range(3):
        torch.testing.assert_close(outs[i], stock.fpn_convs[i](blocks[i](sums[i])))
    for a, b in zip(outs[3:], plain[3:]):  # the extra levels start from the sum
        torch.testing.assert_close(a, b)


def test_dsfpn_initialisation_and_norm():
    neck = dsfpn(norm_cfg=dict(type='GN', num_groups=2))
    neck.init_weights()
    block = neck.fpn_convs[0][0]
    assert isinstance(block.norm1, nn.GroupNorm) and isinstance(
        dsfpn().fpn_convs[0][0].norm1, nn.BatchNorm2d
    )
    assert block.local_fuse.weight.abs().max() < 0.2 and not block.local_fuse.bias.any()
    assert block.conv_in.weight.abs().max() <= math.sqrt(6 / 32)


def test_dsfpn_wants_a_reduction_for_each_map():
    with pytest.raises(ValueError, match='each of the 4 maps'):
        dsfpn(reductions=(8, 4))


def shrunk(name, classes=3):
    """The model of a dense config, around the smallest backbone."""
    cfg = Config.fromfile(CONFIGS / name)
    widths = dict(zip((64, 128, 320, 512), NANO['embed_dims']))

    def smaller(node, key=None):
        if isinstance(node, dict):
            return {k: smaller(v, k) for k, v in node.items()}
        if isinstance(node, (list, tuple)):
            return [smaller(v, key) for v in node]
        if key == 'in_channels' and node in widths:
            return widths[node]
        sizes = dict(num_classes=classes, out_channels=16, feat_channels=16, fc_out_channels=16)
        sizes.update(conv_out_channels=16, channels=16)
        return sizes.get(key, 16 if key == 'in_channels' and node in (256, 1024) else node)

    model = smaller(cfg.model.to_dict())
    model['backbone']['arch'] = NANO
    return Config(dict(model=model, scope=cfg.default_scope))


@pytest.mark.parametrize(
    'name',
    [
        'mask-rcnn_dsnet-s_fpn_1x_coco.py',
        'mask-rcnn_dsnet-s_dsfpn_1x_coco.py',
        'retinanet_dsnet-s_fpn_1x_coco.py',
        'retinanet_dsnet-s_dsfpn_1x_coco.py',
        'dsnet-s_upernet_8xb2-160k_ade20k-512x512.py',
        'dsnet-s_fpn_8xb4-40k_ade20k-512x512.py',
    ],
)
def test_dense_configs_take_a_step(name):
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS as ROOT
    from mmengine.registry import init_default_scope

    cfg = shrunk(name)
    init_default_scope(cfg.scope)
    if cfg.scope == 'mmseg':
        cfg.model.data_preprocessor.size = (64, 64)
    model = revert_sync_batchnorm(ROOT.build(cfg.model))
    model.train()
    data = model.data_preprocessor(
        detection_batch() if cfg.scope == 'mmdet' else segmentation_batch(), True
    )
    losses = model.loss(data['inputs'], data['data_samples'])
    loss, _ = model.parse_losses(losses)
    loss.backward()
    assert loss.isfinite()
    for part in ('backbone', 'neck'):
        for key, parameter in getattr(model, part, nn.Identity()).named_parameters():
            assert parameter.grad is not None or key.startswith('norm.'), key


def detection_batch():
    from mmdet.testing import demo_mm_inputs

    return demo_mm_inputs(2, [[3, 64, 96]] * 2, num_items=[2, 1], num_classes=3, with_mask=True)


def segmentation_batch():
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = [
        SegDataSample(
            gt_sem_seg=PixelData(data=torch.randint(3, (1, 64, 64))),
            metainfo=dict(img_shape=(64, 64)),
        )
        for _ in range(2)
    ]
    return dict(
        inputs=[torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)],
        data_samples=samples,
    )
