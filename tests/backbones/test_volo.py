"""VOLO: the authors' numbers, outlook attention against loops, and the backbone's options."""

import copy
import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import fuse_conv_bn
from mmengine.analysis import get_model_complexity_info
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS as HOST
from mmpretrain.structures import DataSample
from torch.utils.flop_counter import FlopCounterMode

from mmextra.backbones.token_labeling import LVViTBlock, TokenLabelClsHead
from mmextra.backbones.volo import VOLO, ClassAttention, OutlookAttention, Outlooker, resize_grid
from mmextra.engine.checkpoint import load_official

ARCH = dict(
    layers=(2, 1, 1, 1), embed_dims=(16, 32, 32, 32), num_heads=(2, 4, 4, 4), stem_channels=8
)
TINY = {'VOLO': dict(arch=ARCH, img_size=64, out_indices=(0, 1, 2, 3), out_type='featmap')}


def classifier(init_cfg=None, **backbone):
    DefaultScope.get_instance('mmpretrain', scope_name='mmpretrain')
    backbone = {**dict(type='mmextra.VOLO', arch=ARCH, img_size=64, out_type='dense'), **backbone}
    head = dict(type='mmextra.TokenLabelClsHead', num_classes=5, in_channels=32)
    return HOST.build(dict(type='ImageClassifier', backbone=backbone, head=head, init_cfg=init_cfg))


def volo(**options):
    torch.manual_seed(0)
    model = VOLO(**{**dict(arch=ARCH, img_size=64), **options})
    model.init_weights()
    return model.eval()


# --- the authors' numbers ------------------------------------------------------------------------


@pytest.mark.golden('volo', 'outlook_attention*')
def test_outlook_attention(case):
    layer = case.load(OutlookAttention(**case.meta['kwargs'])).eval()
    x = case.leaf('x')
    out = layer(x)
    if 'w' in case.inputs:
        (out * case.inputs['w']).sum().backward()
    case.check(dict(y=out), {'x': x.grad})
    with torch.no_grad():
        case.check(dict(y=layer(x)), {'x': x.grad})


@pytest.mark.golden('volo', 'volo_tiny*')
def test_volo_tiny(case):
    options = {'post_layers': None, 'num_classes': 1000, **case.meta['kwargs']}
    with_cls = bool(options['post_layers'])  # else the tokens are averaged, `return_mean`
    window = dict(out_kernel='kernel_size', out_stride='stride', out_padding='padding')
    renamed = dict(in_chans='in_channels')
    same = ('img_size', 'patch_size', 'qkv_bias', 'qk_scale', *renamed)
    arch = dict(
        layers=options['layers'],
        embed_dims=options['embed_dims'],
        num_heads=options['num_heads'],
        mlp_ratios=options['mlp_ratios'],
        outlook=options['outlook_attention'],
        downsamples=options['downsamples'],
        stem_channels=options.get('stem_hidden_dim', 64),
        cls_layers=len(options['post_layers'] or ()),
    )
    DefaultScope.get_instance('mmpretrain', scope_name='mmpretrain')
    model = HOST.build(
        dict(
            type='ImageClassifier',
            backbone=dict(
                type='mmextra.VOLO',
                arch=arch,
                mix_token=with_cls and options.get('return_dense', True),
                out_type='dense' if with_cls else 'avg_featmap',
                with_cls_attn=with_cls,
                outlook_cfg={
                    **dict(kernel_size=3, stride=2, padding=1),
                    **{window[k]: v for k, v in options.items() if k in window},
                },
                **{renamed.get(k, k): v for k, v in options.items() if k in same},
            ),
            head=dict(
                type='mmextra.TokenLabelClsHead',
                num_classes=options['num_classes'],
                in_channels=options['embed_dims'][-1],
                with_aux=with_cls and options.get('return_dense', True),
            ),
        )
    )
    case.load(model, layout='volo')
    backbone, head, x = model.backbone.eval(), model.head, case.inputs['x']
    seen = {}

    def keep(name, layout=lambda out: out):
        return lambda module, inputs, out: seen.update({name: layout(out)})

    stages = backbone.network
    backbone.patch_embed.register_forward_hook(keep('embed', lambda out: out.permute(0, 2, 3, 1)))
    stages[0][-1].register_forward_hook(keep('stage1'))
    stages[1].register_forward_hook(keep('downsample'))
    stages[-1][-1].register_forward_hook(keep('tokens'))
    backbone.norm.register_forward_pre_hook(
        lambda module, inputs: seen.update(after_class_attention=inputs[0])
    )
    with torch.no_grad():
        logits = model(x, mode='tensor')
        out = dict(seen, logits=logits)
        out['cls'], out['aux'], _ = head.scores(backbone(x))
        best = 0 if out['aux'] is None else out['aux'].max(1).values
        torch.testing.assert_close(logits, out['cls'] + 0.5 * best)
        if 'box' in case.inputs:
            backbone.training = True  # and nothing inside of it
            plain = backbone.mix_token.sample_box
            backbone.mix_token.sample_box = lambda h, w: (0, 0, 0, 0)
            unmixed_cls, unmixed_aux, _ = head.scores(backbone(x))
            torch.testing.assert_close(unmixed_cls, out['cls'])
            torch.testing.assert_close(unmixed_aux, out['aux'])
            assert plain(*out['downsample'].shape[1:3]) is not None
            backbone.mix_token.sample_box = lambda h, w: tuple(case.inputs['box'].tolist())
            out['mix_cls'], out['mix_aux'], _ = head.scores(backbone(x))
    case.check(out)


# --- the numbers of the paper --------------------------------------------------------------------

SIZES = [
    ('d1', 224, 26_632_040, 6.92),
    ('d2', 224, 58_678_336, 14.31),
    ('d3', 224, 86_325_072, 20.73),
    ('d4', 224, 192_961_520, 44.26),
    ('d5', 224, 295_455_584, 72.30),
    ('d1', 384, 26_777_960, 22.68),
    ('d3', 448, None, 96.1),
    ('d5', 512, 296_091_488, 424.6),
]


@pytest.mark.parametrize('arch, size, parameters, gmacs', SIZES)
def test_parameters_and_macs(arch, size, parameters, gmacs):
    with torch.device('meta'):
        backbone = VOLO(arch, img_size=size, out_type='dense').eval().requires_grad_(False)
        head = TokenLabelClsHead(1000, backbone.embed_dims).requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            head(backbone(torch.empty(1, 3, size, size)))
    count = sum(p.numel() for m in (backbone, head) for p in m.parameters())
    assert parameters is None or count == parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.005)


# --- outlook attention ---------------------------------------------------------------------------


def looped_outlook(layer, x, attn=None):
    """One window, one target and one source after another."""
    batch, height, width, dim = x.shape
    heads, kernel, stride, padding = layer.num_heads, layer.kernel_size, layer.stride, layer.padding
    size, square = dim // heads, kernel**2
    values, out = layer.v(x), torch.zeros_like(x)
    rows, columns = -(-height // stride), -(-width // stride)
    for b, i, j, m in itertools.product(*map(range, (batch, rows, columns, heads))):
        block = x[b, stride * i : stride * (i + 1), stride * j : stride * (j + 1)]
        logits = layer.attn(block.flatten(0, 1).mean(0)).view(heads, square, square)[m]
        weights = (layer.scale * logits).softmax(1)
        channels = slice(m * size, (m + 1) * size)
        places = [
            (stride * i - padding + k // kernel, stride * j - padding + k % kernel)
            for k in range(square)
        ]
        inside = [0 <= r < height and 0 <= c < width for r, c in places]
        for target, source in itertools.product(range(square), range(square)):
            if inside[target] and inside[source]:
                r, c = places[target]
                gain = weights[target, source]
                out[b, r, c, channels] += gain * values[(b, *places[source])][channels]
    return layer.proj(out)


@pytest.mark.parametrize('kernel_size, stride', [(3, 2), (3, 1), (5, 2)])
def test_outlook_attention_equals_loops(kernel_size, stride):
    options = dict(kernel_size=kernel_size, stride=stride, padding=kernel_size // 2)
    layer = OutlookAttention(4, 2, **options, qkv_bias=True, qk_scale=0.7)
    x = torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), looped_outlook(layer, x), rtol=1e-4, atol=1e-5)


def test_outlook_gradients_equal_those_of_unfold_and_fold():
    layer, x = OutlookAttention(6, 3, stride=2), torch.randn(2, 5, 6, 6)

    def plain(x):
        values = F.unfold(layer.v(x).permute(0, 3, 1, 2), 3, padding=1, stride=2)
        values = values.view(2, 3, 2, 9, 9).permute(0, 1, 4, 3, 2)
        pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), 2, 2, ceil_mode=True).permute(0, 2, 3, 1)
        attn = layer.attn(pooled).view(2, 9, 3, 9, 9).permute(0, 2, 1, 3, 4)
        out = (layer.scale * attn).softmax(-1) @ values
        out = F.fold(out.permute(0, 1, 4, 3, 2).reshape(2, 54, 9), (5, 6), 3, padding=1, stride=2)
        return layer.proj(out.permute(0, 2, 3, 1))

    weight = torch.randn(2, 5, 6, 6)
    grads = []
    for function in (layer, plain):
        leaf = x.clone().requires_grad_()
        leaves = [leaf, *layer.parameters()]
        grads.append(torch.autograd.grad((function(leaf) * weight).sum(), leaves))
    for ours, theirs in zip(*grads):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_constant_attention_sums_the_means_of_the_windows():
    """Section "checks": zero logits; padding counts in the mean of nine."""
    layer = OutlookAttention(4, 2, stride=2)
    for parameter in layer.attn.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.eye_(layer.proj.weight)
    torch.nn.init.zeros_(layer.proj.bias)
    x = torch.randn(2, 6, 7, 4)
    means = F.avg_pool2d(layer.v(x).permute(0, 3, 1, 2), 3, 2, 1)  # of nine, padding included
    expected = torch.zeros(2, 4, 6, 7)
    for i, j in itertools.product(range(3), range(4)):
        rows = slice(max(2 * i - 1, 0), 2 * i + 2)
        columns = slice(max(2 * j - 1, 0), 2 * j + 2)
        expected[:, :, rows, columns] += means[:, :, i : i + 1, j : j + 1]
    torch.testing.assert_close(layer(x), expected.permute(0, 2, 3, 1))


def test_outlook_attention_names_what_does_not_fit():
    with pytest.raises(ValueError, match='num_heads=4'):
        OutlookAttention(6, 4)
    with pytest.raises(ValueError, match='padding=0 give'):
        OutlookAttention(4, 2, padding=0, stride=2)(torch.randn(1, 6, 6, 4))


def test_outlook_attention_drops_out_in_training_only():
    layer, x = OutlookAttention(4, 2, stride=2, attn_drop=0.5), torch.randn(1, 4, 4, 4)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_class_attention_changes_the_class_token_only():
    layer, tokens = ClassAttention(12, 3, qkv_bias=True).eval(), torch.randn(2, 5, 12)
    cls_token = torch.randn(2, 1, 12)
    z = layer.norm1(torch.cat((cls_token, tokens), 1))
    q = layer.attn.q(z[:, :1]).view(2, 1, 3, 4)
    k, v = layer.attn.kv(z).view(2, 6, 2, 3, 4).unbind(2)
    heads = [(0.5 * q[:, :, h] @ k[:, :, h].mT).softmax(-1) @ v[:, :, h] for h in range(3)]
    expected = cls_token + layer.attn.proj(torch.cat(heads, -1))
    expected = expected + layer.mlp(layer.norm2(expected))
    torch.testing.assert_close(layer(cls_token, tokens), expected, rtol=1e-4, atol=1e-5)


# --- backbone ------------------------------------------------------------------------------------


def test_shapes_of_d1():
    with torch.device('meta'):
        backbone = VOLO('d1', out_indices=(0, 1, 2, 3), out_type='featmap').eval()
        outs = backbone(torch.empty(2, 3, 224, 224))
    assert [tuple(o.shape) for o in outs] == [(2, 192, 28, 28)] + 3 * [(2, 384, 14, 14)]


def test_positions_for_other_sizes():
    model = volo(out_type='featmap', img_size=64)
    seen = []
    model.network[2][0].register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    model.network[1].register_forward_hook(lambda m, inputs, out: seen.append(out))
    assert model(torch.randn(2, 3, 96, 128))[0].shape == (2, 32, 6, 8)
    downsampled, tokens = seen
    added = (tokens - downsampled.flatten(1, 2))[0]
    expected = F.interpolate(
        model.pos_embed.permute(0, 3, 1, 2), (6, 8), mode='bicubic', align_corners=False
    )
    torch.testing.assert_close(added, expected[0].flatten(1).T, rtol=1e-3, atol=1e-6)
    assert resize_grid(model.pos_embed, (4, 4)) is model.pos_embed
    double = torch.randn(1, 4, 4, 2, dtype=torch.double)
    expected = F.interpolate(
        double.permute(0, 3, 1, 2), (6, 8), mode='bicubic', align_corners=False
    )
    torch.testing.assert_close(
        resize_grid(double, (6, 8)), expected.permute(0, 2, 3, 1), rtol=1e-12, atol=1e-12
    )


def test_positions_of_a_checkpoint_of_another_size():
    small, large = volo(), volo(img_size=(96, 64))
    large.load_state_dict(small.state_dict())
    x = torch.randn(1, 3, 96, 64)
    torch.testing.assert_close(large(x)[0], small(x)[0])
    assert large.pos_embed.shape == (1, 6, 4, 32)


@torch.no_grad()
def test_sizes_that_are_no_whole_number_of_tokens():
    """Maps for dense prediction cover the image, padded with zeros; a classifier drops the rest."""
    x = torch.randn(1, 3, 65, 70)
    model = volo(out_type='featmap', out_indices=(0, 3))
    maps = model(x)
    assert [tuple(out.shape[2:]) for out in maps] == [(9, 9), (5, 5)]
    torch.testing.assert_close(model(F.pad(x, (0, 2, 0, 7)))[0], maps[0])
    assert volo(out_type='dense')(x)[0][0].shape == (1, 32, 4, 4)


def test_output_types():
    x = torch.randn(2, 3, 64, 64)
    patches, cls_token, box = volo(out_type='dense')(x)[-1]
    assert patches.shape == (2, 32, 4, 4) and box == ()
    torch.testing.assert_close(volo()(x)[0], cls_token)
    torch.testing.assert_close(volo(out_type='featmap')(x)[0], patches)
    pooled = volo(out_type='avg_featmap', out_indices=(0, 3))(x)
    assert pooled[0].shape == (2, 16)
    torch.testing.assert_close(pooled[1], patches.mean((2, 3)))
    plain = volo(out_type='featmap', final_norm=False)
    unnormed = plain(x)[0].permute(0, 2, 3, 1)
    torch.testing.assert_close(plain.norm(unnormed).permute(0, 3, 1, 2), patches)
    first = volo(out_type='dense', out_indices=(0, 3))(x)
    assert first[0].shape == (2, 16, 8, 8) and len(first[1]) == 3


def test_what_dense_prediction_does_not_use_is_frozen_or_left_out():
    kept = volo(out_type='featmap')
    unused = [k for k, p in kept.named_parameters() if not p.requires_grad]
    assert unused and all(k.startswith(('cls_token', 'post_network')) for k in unused)
    left_out = volo(out_type='featmap', with_cls_attn=False)
    assert set(kept.state_dict()) - set(left_out.state_dict()) == set(unused)
    x = torch.randn(1, 3, 64, 64)
    left_out.load_state_dict(kept.state_dict(), strict=False)
    torch.testing.assert_close(left_out(x), kept(x))


def test_mixed_tokens_are_those_of_the_reversed_batch():
    """Where the box lies, the mixed batch is the reversed one, at twice the resolution."""
    model, x = volo(mix_token=True, out_type='dense'), torch.randn(3, 3, 64, 64)
    model.mix_token.sample_box = lambda h, w: (1, 0, 3, 2)
    seen = []
    model.network[0][0].register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    model(x)
    model.training = True
    assert model(x)[-1][2] == (1, 0, 3, 2)
    expected = seen[0].clone()
    expected[:, 2:6, 0:4] = seen[0].flip(0)[:, 2:6, 0:4]
    assert torch.equal(seen[1], expected)


def test_tokens_are_mixed_on_the_grid_of_the_last_stage():
    """With two downsamples the boxes are four times as coarse as the first tokens."""
    arch = dict(ARCH, embed_dims=(8, 16, 24, 24), downsamples=(True, True, False, False))
    model = volo(arch=arch, mix_token=True, out_type='dense')
    assert model.pos_embed.shape == (1, 4, 4, 16)
    grids, seen = [], []
    model.mix_token.sample_box = lambda h, w: grids.append((h, w)) or (0, 1, 1, 2)
    model.network[0][0].register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    x = torch.randn(2, 3, 64, 64)
    model(x)
    model.training = True
    patch_map = model(x)[0][0]
    assert grids == [tuple(patch_map.shape[2:])] == [(2, 2)]
    expected = seen[0].clone()
    expected[:, :4, 4:] = seen[0].flip(0)[:, :4, 4:]
    assert torch.equal(seen[1], expected)


def test_stochastic_depth_counts_but_skips_the_outlookers():
    model = VOLO(dict(ARCH, layers=(4, 2, 2, 1)), drop_path_rate=0.8)
    blocks = [block for stage in model.network if hasattr(stage, '__len__') for block in stage]
    assert all(isinstance(block, Outlooker) for block in blocks[:4])
    rates = [block.drop_path.drop_prob for block in blocks[4:]]
    assert rates == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8])
    assert all(isinstance(block, LVViTBlock) for block in blocks[4:])


def test_stages_of_other_kinds():
    """Outlook attention everywhere, no downsample."""
    arch = dict(ARCH, embed_dims=(32,) * 4, outlook=(True,) * 4, downsamples=(False,) * 4)
    model = volo(arch=arch, out_type='featmap', out_indices=(0, 3))
    outs = model(torch.randn(1, 3, 64, 64))
    assert [tuple(o.shape) for o in outs] == [(1, 32, 8, 8)] * 2
    assert model.pos_embed.shape == (1, 8, 8, 32)


def test_a_plain_linear_head_works():
    DefaultScope.get_instance('mmpretrain', scope_name='mmpretrain')
    for head in ('LinearClsHead', 'VisionTransformerClsHead'):
        model = HOST.build(
            dict(
                type='ImageClassifier',
                backbone=dict(
                    type='mmextra.VOLO',
                    **dict(TINY['VOLO'], out_indices=-1),
                )
                | dict(out_type='cls_token'),
                head=dict(type=head, num_classes=5, in_channels=32),
            )
        )
        samples = [DataSample().set_gt_label(1), DataSample().set_gt_label(2)]
        model.loss(torch.randn(2, 3, 64, 64), samples)['loss'].backward()
        assert all(p.grad is not None for p in model.parameters())


def test_frozen_positions():
    for stages, frozen in ((0, False), (1, False), (2, True)):
        assert volo(frozen_stages=stages).pos_embed.requires_grad is not frozen
    arch = dict(ARCH, embed_dims=(32,) * 4, downsamples=(False,) * 4)  # they come after stage 1
    for stages, frozen in ((2, False), (3, True)):
        assert volo(arch=arch, frozen_stages=stages).pos_embed.requires_grad is not frozen


def test_what_is_frozen_stays_in_eval_mode():
    model = volo(out_type='featmap', final_norm=False).train()
    assert not any(part.training for m in (model.post_network, model.norm) for part in m.modules())


def test_norms_can_be_fused_for_inference():
    model, x = volo(), torch.randn(2, 3, 64, 64)
    for norm in model.patch_embed.conv[1::3]:
        norm.running_mean.normal_(std=0.2)
        norm.running_var.uniform_(0.5, 1.5)
    fused = fuse_conv_bn(copy.deepcopy(model))
    with torch.no_grad():
        for mode in (fused, fused.eval()):
            torch.testing.assert_close(mode(x)[0], model(x)[0], rtol=1e-4, atol=1e-5)


def test_traces_for_any_batch_size():
    model, x = volo(), torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        traced = torch.jit.trace(model, (x[:2],), check_trace=False)
        torch.testing.assert_close(traced(x)[0], model(x)[0], rtol=1e-4, atol=1e-5)


def test_the_hosts_tool_counts_operations():
    """Which it does on a trace: those of the class attention and of all outlookers are in it."""
    found = [
        get_model_complexity_info(volo(arch=dict(ARCH, layers=layers)), (3, 64, 64))['flops']
        for layers in ((1, 1, 1, 1), (2, 1, 1, 1))
    ]
    dim, places, windows, heads = 16, 64, 16, 2
    linear = places * dim * dim * 2 + windows * dim * 81 * heads + places * dim * 3 * dim * 2
    products = windows * 9 * 9 * dim
    others = 2 * places * dim * 5 + windows * 4 * dim  # norms, and means of the windows
    assert linear + products <= found[1] - found[0] <= linear + products + others


def test_depths_of_layers():
    model = volo()
    depths = {
        'patch_embed.proj.weight': 0,
        'pos_embed': 0,
        'cls_token': 0,
        'network.0.0.norm1.weight': 1,
        'network.0.1.norm1.weight': 2,
        'network.1.proj.weight': 3,
        'network.2.0.norm1.weight': 3,
        'network.4.0.norm1.weight': 5,
        'post_network.0.norm1.weight': 6,
        'post_network.1.norm1.weight': 7,
        'norm.weight': 8,
    }
    names = dict(model.named_parameters())
    for name, depth in depths.items():
        assert name in names and model.get_layer_depth(f'backbone.{name}', 'backbone.') == (
            depth,
            9,
        )
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (8, 9)


@pytest.mark.parametrize(
    'options, name',
    [
        (dict(arch='d6'), 'd6'),
        (dict(arch=dict(layers=(1, 1, 1, 1))), 'embed_dims'),
        (dict(arch=dict(ARCH, depth=3)), 'depth'),
        (dict(arch=dict(ARCH, layers=(1, 1))), 'layers'),
        (dict(patch_size=12), 'patch_size'),
        (dict(out_type='map'), 'out_type'),
        (dict(out_indices=4), 'out_indices'),
        (dict(out_indices=(0, 3)), 'out_indices'),
        (dict(mix_token=True), 'mix_token'),
        (dict(mix_token=True, out_type='dense', out_indices=(0, 2)), 'last stage'),
        (dict(arch=dict(ARCH, downsamples=(False,) * 4)), 'embed_dims'),
        (dict(with_cls_attn=False), 'with_cls_attn'),
        (dict(frozen_stages=5), 'frozen_stages'),
        (dict(frozen_stages=-2), 'frozen_stages'),
    ],
)
def test_bad_arguments_are_named(options, name):
    with pytest.raises(ValueError, match=name):
        volo(**options)


def test_timm_weights_load():
    """timm's copy of the model: its names, and its logits."""
    timm_volo = pytest.importorskip('timm.models.volo')
    torch.manual_seed(0)
    options = {k: v for k, v in ARCH.items() if k != 'stem_channels'}
    theirs = timm_volo.VOLO(**options, img_size=64, stem_hidden_dim=8, num_classes=5).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = classifier()
    load_official(ours, theirs.state_dict(), 'volo')
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_official_files_load(tmp_path):
    """Wrapped as published, into the classifier or its backbone alone, and not initialised over."""
    torch.manual_seed(0)
    source = classifier()
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter)
    official = {
        k.removeprefix('backbone.').replace('head.aux_fc', 'aux_head').replace('head.fc', 'head'): v
        for k, v in source.state_dict().items()
    }
    file = tmp_path / 'official.pth.tar'
    torch.save(dict(state_dict={f'module.{k}': v for k, v in official.items()}), file)
    init_cfg = dict(type='mmextra.OfficialCheckpoint', checkpoint=str(file))
    whole = classifier(init_cfg)
    part = VOLO(ARCH, 64, out_type='featmap', init_cfg=init_cfg)  # of a detector
    whole.init_weights()
    part.init_weights()
    for ours, theirs in ((whole, source), (part, source.backbone)):
        expected = theirs.state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in ours.state_dict().items())
    official.pop('norm.bias')
    torch.save(official, file)
    with pytest.raises(ValueError, match='norm.bias'):
        classifier(init_cfg).init_weights()


# --- in detectors and segmentors -----------------------------------------------------------------

CONFIGS = Path(__file__).parents[2] / 'configs' / 'volo'


def dense_model(name):
    """The model of a dense config with the backbone shrunk."""
    cfg = Config.fromfile(CONFIGS / name)
    DefaultScope.get_instance(cfg.default_scope, scope_name=cfg.default_scope)
    cfg.model.backbone.update(arch=ARCH, img_size=64)
    cfg.model.neck.in_channels = 32
    if 'size' in cfg.model.data_preprocessor:
        cfg.model.data_preprocessor.size = (64, 96)
    if 'roi_head' in cfg.model:
        cfg.model.roi_head.bbox_head.fc_out_channels = 16
    return revert_sync_batchnorm(ROOT.build(cfg.model)).train()


def check_dense_training(model, data):
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    grads = [p.grad for p in model.backbone.parameters()]
    assert loss.isfinite() and all(grad is not None and grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize('name', ['mask-rcnn_volo-d1_fpn_1x_coco', 'retinanet_volo-d1_fpn_1x_coco'])
def test_detectors_train(name):
    from mmdet.testing import demo_mm_inputs

    masks = name.startswith('mask')
    data = demo_mm_inputs(2, [[3, 64, 96]] * 2, num_items=[2, 1], num_classes=80, with_mask=masks)
    check_dense_training(dense_model(f'{name}.py'), data)


@pytest.mark.parametrize('name', ['volo-d1_upernet_8xb2-160k', 'volo-d1_fpn_8xb4-40k'])
def test_segmentors_train(name):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = [SegDataSample(metainfo=dict(img_shape=(64, 96))) for _ in range(2)]
    for sample in samples:
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, 64, 96)))
    inputs = [torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8) for _ in range(2)]
    model = dense_model(f'{name}_ade20k-512x512.py')
    check_dense_training(model, dict(inputs=inputs, data_samples=samples))


def test_large_crop_ratio_shows_the_whole_image_on_black():
    """Crop ratio 1.15 of D4 and D5."""
    from mmengine.dataset import Compose

    cfg = Config.fromfile(CONFIGS / 'volo-d4_8xb128_in1k.py')
    DefaultScope.get_instance('mmpretrain', scope_name='mmpretrain')
    pipeline = Compose(cfg.test_pipeline[1:])
    image = torch.full((300, 300, 3), 200, dtype=torch.uint8).numpy()
    out = pipeline(dict(img=image))['inputs']
    assert out.shape == (3, 224, 224)
    assert (out[:, 15:209, 15:209] == 200).all() and out[:, :15].max() == out[..., 209:].max() == 0
