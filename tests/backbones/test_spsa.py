"""SPSA: the approximation against the attention it approximates, its cost, and its places in host backbones."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import mmextra.registry  # noqa: F401  host bases of configs
from mmextra.backbones.spsa import SPSA, SPSABlock, SPSAMobileNetV2, SPSAMobileViT, SPSAPlugin
from mmextra.registry import MODELS

CONFIGS = Path(__file__).parents[2] / 'configs' / 'spsa'
NANO = [
    ['mobilenetv2', 8, 1, 1, 2],
    ['mobilevit', 12, 2, 16, 16, 2, 2],
    ['mobilevit', 16, 2, 24, 24, 1, 2],
]
TINY = {
    'SPSA': dict(num_heads=2),
    'SPSAPlugin': dict(in_channels=8),
    'SPSABlock': dict(in_channels=8, num_heads=2),
    'SPSAMobileViT': dict(arch=NANO, out_indices=(0, 1, 2)),
    'SPSAMobileNetV2': dict(widen_factor=0.25, out_indices=(2, 4, 7)),
}


def unit(x):
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def exact(x, tau=1.0):
    """The parameter-free softmax attention that is approximated; tokens (N, d)."""
    q = unit(x)
    return (q @ q.T / tau).softmax(-1) @ x


# --- the operator ---------------------------------------------------------------------------------------------------


def test_nothing_to_train():
    layer = SPSA(num_heads=4, dropout_layer=dict(type='DropPath', drop_prob=0.1))
    assert sum(p.numel() for p in layer.parameters()) == 0
    assert not layer.state_dict() and not list(layer.buffers())


def test_known_values():
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    expected = [[0.787555, 0.575111], [0.575111, 0.787555], [0.684699, 0.684699]]
    torch.testing.assert_close(SPSA()(x)[0], torch.tensor(expected), rtol=0, atol=1e-6)
    expected = [[0.825978, 0.526959], [0.526959, 0.825978], [0.700626, 0.700626]]
    torch.testing.assert_close(exact(x[0]), torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize('heads, tau', [(1, 1.0), (3, 2.5)])
def test_token_by_token(heads, tau):
    x = torch.randn(2, 7, 12, dtype=torch.double)
    expected = torch.empty_like(x)
    for b in range(2):
        for head in range(heads):
            part = slice(head * 12 // heads, (head + 1) * 12 // heads)
            tokens = x[b, :, part]
            for i in range(7):
                weights = [
                    1 + (tokens[i] @ tokens[j]) / (tokens[i].norm() * tokens[j].norm()) / tau
                    for j in range(7)
                ]
                mixed = sum(w * token for w, token in zip(weights, tokens)) / sum(weights)
                expected[b, i, part] = mixed
    torch.testing.assert_close(SPSA(12, heads, tau)(x), expected)


def test_softmax_mode_token_by_token():
    x = torch.randn(1, 5, 6)
    expected = torch.empty(5, 6)
    for part in (slice(0, 3), slice(3, 6)):
        tokens = x[0, :, part]
        queries = [(t / math.sqrt(3)).softmax(0) for t in tokens]
        keys = torch.stack([(column / math.sqrt(3)).softmax(0) for column in tokens.T], 1)
        context = sum(torch.outer(k, t) for k, t in zip(keys, tokens))
        expected[:, part] = torch.stack([q @ context for q in queries])
    torch.testing.assert_close(SPSA(num_heads=2, mode='softmax')(x)[0], expected)


@pytest.mark.parametrize('tau, bound', [(1.0, 0.05), (2.0, 0.0115), (4.0, 0.003)])
def test_close_to_exact_attention(tau, bound):
    errors = []
    for _ in range(5):
        x = torch.randn(196, 48)
        y, target = SPSA(tau=tau)(x[None])[0], exact(x, tau)
        errors.append((y - target).norm() / target.norm())
        mean = x.mean(0)
        assert F.cosine_similarity((y - mean).flatten(), (target - mean).flatten(), dim=0) > 0.995
    assert sum(errors) / 5 < bound


def test_close_to_exact_attention_on_clustered_tokens():
    x = 2 * torch.randn(4, 48).repeat_interleave(49, 0) + torch.randn(196, 48)
    mean = x.mean(0)
    got, target = SPSA()(x[None])[0] - mean, exact(x) - mean
    assert F.cosine_similarity(got.flatten(), target.flatten(), dim=0) > 0.99
    # What a mean over all tokens, or a gate made of it, cannot do.
    assert got.norm() > 0.5 * target.norm()


def test_equal_tokens_and_single_tokens_stay():
    token = torch.randn(1, 1, 12)
    layer = SPSA(num_heads=3)
    torch.testing.assert_close(layer(token), token)
    torch.testing.assert_close(layer(token.expand(1, 9, 12)), token.expand(1, 9, 12))
    assert not layer(torch.zeros(1, 4, 12)).any()


def test_output_lies_in_the_convex_hull():
    x = torch.randn(3, 20, 8) * 10
    directions = torch.randn(8, 200)
    inside, hull = SPSA()(x) @ directions, x @ directions
    assert (inside <= hull.amax(1, keepdim=True) + 1e-4).all()
    assert (inside >= hull.amin(1, keepdim=True) - 1e-4).all()


def test_permutation_equivariance():
    x, order = torch.randn(2, 50, 12), torch.randperm(50)
    for mode in ('taylor', 'softmax'):
        layer = SPSA(num_heads=2, mode=mode)
        torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], rtol=0, atol=1e-5)


def test_every_output_depends_on_every_input():
    x = torch.randn(6, 4)
    jacobian = torch.autograd.functional.jacobian(lambda t: SPSA()(t[None])[0], x)
    assert (jacobian.abs().amax((1, 3)) > 1e-4).all()
    within_head = torch.autograd.functional.jacobian(lambda t: SPSA(num_heads=2)(t[None])[0], x)
    assert not within_head[:, :2, :, 2:].any()


@pytest.mark.parametrize('mode', ['taylor', 'softmax'])
def test_gradient(mode):
    x = torch.randn(1, 4, 6, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(SPSA(num_heads=2, tau=1.5, mode=mode), x)


def test_maps_are_flattened():
    x = torch.randn(2, 12, 5, 7)
    layer = SPSA(num_heads=2)
    expected = layer(x.flatten(2).mT).mT.reshape(x.shape)
    assert torch.equal(layer(x), expected)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(last), expected)
    assert layer(last).is_contiguous(memory_format=torch.channels_last)


def macs(num):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        SPSA(num_heads=2)(torch.empty(1, num, 64, device='meta'))
    return counter.get_total_flops() / 2


def test_cost_is_linear():
    assert macs(256) == 2 * 2 * 256 * 32 * 33
    assert macs(1024) == 4 * macs(256)


class Allocations(TorchDispatchMode):
    """Sizes in bytes of all tensors that are made."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.sizes += [t.numel() * t.element_size() for t in tree_leaves(out) if torch.is_tensor(t)]
        return out


@pytest.mark.parametrize('mode', ['taylor', 'softmax'])
def test_no_map_of_tokens_by_tokens(mode):
    """All tensors together, views included, take less than the peak that is allowed; a map would take 1 GiB."""
    with Allocations() as made:
        SPSA(mode=mode)(torch.empty(1, 16_384, 64))
    assert max(made.sizes) < 2 * 16_384 * 65 * 4 and sum(made.sizes) < 300e6


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_sums_in_float32(dtype):
    x = torch.randn(1, 16_384, 64) + 3
    low = x.to(dtype)
    expected = SPSA()(low.float())
    with torch.autocast('cpu', dtype=dtype):
        out = SPSA()(low)
    assert out.dtype == dtype
    assert (out.float() - expected).abs().max() < (1e-2 if dtype == torch.float16 else 4e-2)


def test_stochastic_depth():
    layer = SPSA(dropout_layer=dict(type='DropPath', drop_prob=0.5)).train()
    out = layer(torch.randn(64, 3, 4))
    dropped = (out == 0).flatten(1).all(1)
    assert 10 < dropped.sum() < 54
    assert (layer.eval()(torch.randn(64, 3, 4)) != 0).all()


@pytest.mark.parametrize(
    'build, message',
    [
        (lambda: SPSA(tau=0.5), 'tau must be at least 1.*got 0.5'),
        (lambda: SPSA(tau=math.nan), 'tau must not be NaN'),
        (lambda: SPSA(mode='linear'), "'taylor' or 'softmax', got 'linear'"),
        (lambda: SPSA(10, 4), '10 channels are no multiple of num_heads=4'),
        (lambda: SPSA(num_heads=4)(torch.randn(1, 3, 10)), '10 channels are no multiple'),
        (lambda: SPSAPlugin(in_channels=10, num_heads=4), '10 channels are no multiple'),
        (lambda: SPSA()(torch.randn(3, 10)), r'\(B, N, C\).*shape \(3, 10\)'),
        (lambda: SPSAMobileViT('xx_small', out_indices=(5,)), '5.*there are 5 stages'),
        (lambda: SPSAMobileViT('xx_small', out_indices=-6), '-6.*there are 5 stages'),
    ],
)
def test_wrong_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# --- blocks and plugins ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_block_against_its_formula():
    torch.manual_seed(0)
    layer = SPSABlock(8, num_heads=2, tau=2.0).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    for name, buffer in layer.named_buffers():
        if 'running' in name:
            buffer.uniform_(0.5, 1.5)

    def norm(x, module):
        mean, var = (t.view(1, -1, 1, 1) for t in (module.running_mean, module.running_var))
        weight, bias = (t.view(1, -1, 1, 1) for t in (module.weight, module.bias))
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def silu(x):
        return x * x.sigmoid()

    def pointwise(x, conv):
        return torch.einsum('oc,bchw->bohw', conv.weight[:, :, 0, 0], x) + conv.bias.view(
            1, -1, 1, 1
        )

    x = torch.randn(2, 8, 5, 6)
    patches = F.unfold(x, 3, padding=1).view(2, 8, 9, 30)
    u = torch.einsum('bckn,ck->bcn', patches, layer.local.conv.weight.flatten(1)).view(x.shape)
    u = norm(u, layer.local.bn)
    y = SPSA(num_heads=2, tau=2.0)(u.flatten(2).mT).mT.view(x.shape)
    expected = x + pointwise(silu(norm(u + y, layer.proj[0])), layer.proj[2])
    hidden = silu(pointwise(norm(expected, layer.ffn[0]), layer.ffn[1]))
    assert hidden.shape[1] == 16
    expected = expected + pointwise(hidden, layer.ffn[3])
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('host', ['mmdet', 'mmseg'])
@pytest.mark.parametrize('plugin', ['SPSAPlugin', 'SPSABlock'])
def test_plugin_slots_of_resnet(host, plugin):
    from mmengine.registry import MODELS as ROOT
    from mmengine.registry import DefaultScope

    DefaultScope.get_instance('test', scope_name=host)
    resnet = dict(type=f'{host}.ResNet', depth=50, base_channels=8)
    plugins = [
        dict(
            cfg=dict(type=f'mmextra.{plugin}', num_heads=4),
            stages=(False, False, True, True),
            position='after_conv2',
        )
    ]
    model, stock = ROOT.build(dict(resnet, plugins=plugins)), ROOT.build(resnet)
    found = [k for k, m in model.named_modules() if isinstance(m, (SPSAPlugin, SPSABlock))]
    assert len(found) == 6 + 3 and all(k.startswith(('layer3', 'layer4')) for k in found)
    if plugin == 'SPSAPlugin':  # the host's checkpoints fit
        assert model.state_dict().keys() == stock.state_dict().keys()
    maps = model(torch.randn(2, 3, 64, 64))
    assert [m.shape[2] for m in maps] == [16, 8, 4, 2]
    sum(m.mean() for m in maps).backward()


def test_plugin_adds_its_input():
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(SPSAPlugin(8, num_heads=2)(x), x + SPSA(num_heads=2)(x))


# --- backbones ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'arch, channels, params, macs_224, macs_256',
    [
        ('small', 640, 4_124_616, 1.164e9, 1.504e9),
        ('x_small', 384, 1_760_472, 0.600e9, 0.777e9),
        ('xx_small', 320, 1_023_320, 0.209e9, 0.271e9),
    ],
)
def test_size_and_cost(arch, channels, params, macs_224, macs_256):
    with torch.device('meta'), torch.no_grad():
        model, head = SPSAMobileViT(arch).eval(), nn.Linear(channels, 1000)
        assert sum(p.numel() for m in (model, head) for p in m.parameters()) == params
        for side, expected in ((224, macs_224), (256, macs_256)):
            with FlopCounterMode(display=False) as counter:
                head(model(torch.empty(1, 3, side, side))[0].mean((2, 3)))
            assert counter.get_total_flops() / 2 == pytest.approx(expected, rel=5e-3)


def mobilevit(**options):
    torch.manual_seed(0)
    return SPSAMobileViT(**{**TINY['SPSAMobileViT'], **options})


def test_only_the_attentions_are_replaced():
    from mmpretrain.models import MobileViT

    ours, stock = mobilevit(spsa=dict(num_heads=2, tau=2.0)), MobileViT(**TINY['SPSAMobileViT'])
    gone = stock.state_dict().keys() - ours.state_dict().keys()
    assert gone and all('.attn.' in k for k in gone)
    assert not ours.state_dict().keys() - stock.state_dict().keys()
    found = [m for m in ours.modules() if isinstance(m, SPSA)]
    assert len(found) == 3 and all((m.num_heads, m.tau) == (2, 2.0) for m in found)


def test_identity_in_the_place_of_attention_keeps_positions_apart():
    """Far from each other, two positions can only meet in the attention."""
    x = torch.randn(1, 3, 256, 256)
    far = x.clone()
    far[..., :8, :8] += 1
    for spsa, meet in ((dict(num_heads=4), True), (None, False)):
        model = mobilevit(spsa=spsa, out_indices=(1,)).eval()
        with torch.no_grad():
            change = (model(far)[0] - model(x)[0])[..., -8:, -8:].abs().max()
        assert (change > 0) == meet


@torch.no_grad()
def test_same_as_the_host_with_its_attention():
    """But for the attention, our forward is the host's."""
    from mmpretrain.models import MobileViT

    ours, stock = mobilevit(), MobileViT(**TINY['SPSAMobileViT'])
    stock_attn = [m.attn for m in stock.modules() if hasattr(m, 'ln1')]
    for layer, attn in zip((m for m in ours.modules() if hasattr(m, 'ln1')), stock_attn):
        layer.attn = attn
    ours.load_state_dict(stock.state_dict())
    ours.eval(), MobileViT.train(stock, False)
    x = torch.randn(1, 3, 70, 64)
    for a, b in zip(ours(x), stock(x)):
        torch.testing.assert_close(a, b)


def test_drop_path_rates_rise():
    layers = [m for m in mobilevit(drop_path_rate=0.2).modules() if hasattr(m, 'ln1')]
    for drops in ([m.attn.out_drop for m in layers], [m.ffn.dropout_layer for m in layers]):
        assert [d.drop_prob for d in drops] == pytest.approx([0, 0.1, 0.2])


def test_stage_out_of_range_is_named_by_the_host():
    assert mobilevit(out_indices=-1).out_indices == [2]
    with pytest.raises(ValueError, match='frozen_stages'):
        mobilevit(frozen_stages=7)


@pytest.mark.parametrize('name', ['SPSAMobileViT', 'SPSAMobileNetV2'])
def test_frozen_stem_stays_in_eval_mode(name):
    model = MODELS.build(dict(type=name, **TINY[name], frozen_stages=1)).train()
    stem, stages = (model.stem, model.layers) if name == 'SPSAMobileViT' else (model.conv1, None)
    first, second = (stages[0], stages[1]) if stages else (model.layer1, model.layer2)
    for part in (stem, first):
        assert not any(p.requires_grad for p in part.parameters())
        assert not any(m.training for m in part.modules())
    assert all(p.requires_grad for p in second.parameters()) and second.training


def test_mobilenet_takes_the_hosts_checkpoints():
    from mmpretrain.models import MobileNetV2

    torch.manual_seed(0)
    options = TINY['SPSAMobileNetV2']
    ours, stock = SPSAMobileNetV2(**options).eval(), MobileNetV2(**options)
    stock.eval()
    stock.load_state_dict(ours.state_dict())
    found = {k.partition('.')[0] for k, m in ours.named_modules() if isinstance(m, SPSA)}
    assert found == {'layer4', 'layer5', 'layer6', 'layer7'}
    assert sum(isinstance(m, SPSA) for m in ours.modules()) == 4 + 3 + 3 + 1
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        (early, *late), (expected, *others) = ours(x), stock(x)
        assert torch.equal(early, expected)
        assert not any(torch.equal(a, b) for a, b in zip(late, others))
        for plugin in (m for m in ours.modules() if isinstance(m, SPSAPlugin)):
            plugin.forward = lambda x: x
        assert all(torch.equal(a, b) for a, b in zip(ours(x), stock(x)))


def test_layer_depths():
    model = mobilevit()
    depth = {k: model.get_layer_depth(f'backbone.{k}', 'backbone.')[0] for k in model.state_dict()}
    assert depth['stem.conv.weight'] == 0 and depth['layers.0.0.conv.0.conv.weight'] == 1
    assert depth['layers.1.1.global_rep.0.ln1.weight'] == 3
    assert (
        depth['conv_1x1_exp.conv.weight']
        == 6
        == model.get_layer_depth('head.fc.weight', 'backbone.')[0]
    )
    assert SPSAMobileNetV2().get_layer_depth('layer7.0.conv.0.conv.weight') == (17, 19)
    assert SPSAMobileNetV2().get_layer_depth('conv2.conv.weight') == (18, 19)


@pytest.mark.parametrize(
    'name',
    ['retinanet_r50-spsa_fpn_1x_coco.py', 'ssdlite_spsa-mobilenetv2-scratch_8xb24-600e_coco.py'],
)
def test_detectors_take_a_step(name):
    from mmdet.testing import demo_mm_inputs
    from mmengine.registry import MODELS as ROOT
    from mmengine.registry import init_default_scope

    model = Config.fromfile(CONFIGS / name).model
    model.backbone.init_cfg = None
    model.bbox_head.num_classes = 3
    if 'retinanet' in name:
        model.backbone.base_channels = 8
        model.neck.update(in_channels=[32, 64, 128, 256], out_channels=16)
        model.bbox_head.update(in_channels=16, feat_channels=16)
    init_default_scope('mmdet')
    detector = ROOT.build(model)
    assert any(isinstance(m, SPSA) for m in detector.backbone.modules())
    data = demo_mm_inputs(2, [[3, 96, 96]] * 2, num_items=[2, 1], num_classes=3)
    data = detector.data_preprocessor(data, True)
    loss, _ = detector.parse_losses(detector.loss(data['inputs'], data['data_samples']))
    loss.backward()
    assert loss.isfinite()
