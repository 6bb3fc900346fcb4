"""ELSA: the authors' numbers, what the operation must do, and the backbones in the three hosts."""

import functools
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from mmengine.analysis import get_model_complexity_info
from mmpretrain.models.utils.attention import WindowMSA
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmextra.backbones.elsa import (
    ELSA,
    ELSAVOLO,
    ELSABlock,
    ELSASwin,
    _Aggregate,
    depthwise,
    elsa_op,
)
from mmextra.engine.checkpoint import get_layout, load_official
from mmextra.registry import MODELS

CONFIGS = Path(__file__).parents[2] / 'configs' / 'elsa'
SWIN = dict(embed_dims=8, depths=[1, 1, 1, 2], num_heads=[1, 2, 2, 4])
TINY = {
    'ELSA': dict(dim=12, num_heads=2, group_width=4, kernel_size=3),
    'ELSABlock': dict(embed_dims=12, num_heads=2, group_width=4, kernel_size=3),
    'ELSASwin': dict(
        arch=SWIN,
        img_size=64,
        window_size=3,
        elsa_kernel=3,
        group_width=2,
        out_indices=(0, 1, 2, 3),
        pad_small_map=True,
    ),
    'ELSAVOLO': dict(
        arch=dict(
            layers=(1, 1, 2, 1),
            embed_dims=(12, 24, 24, 24),
            num_heads=(1, 2, 2, 2),
            mlp_ratios=(2.0, 2.0, 2.0, 2.0),
            stem_channels=8,
        ),
        elsa_cfg=dict(kernel_size=3, group_width=4, qk_scale=1),
        img_size=64,
        out_indices=(0, 1, 2, 3),
        out_type='featmap',
    ),
}


def redraw(module, scale=0.5):
    """Draw all parameters anew."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=scale)
    nn.Module.train(module, False)
    return module


# --- the authors' numbers -------------------------------------------------------------------------------------------

# Arguments of the authors' class at values that change nothing.
NEUTRAL = (('stride', 1), ('attn_drop', 0.0), ('proj_drop', 0.0), ('groups', 1))
VARIANTS = dict(both=(1, 1), add_only=(0, 1), mul_only=(1, 0), none=(0, 0))


@pytest.mark.golden('elsa', 'elsa_op*')
def test_operation(case):
    options = {k: v for k, v in case.meta['kwargs'].items() if k in ('kernel_size', 'dilation')}
    out, grads = {}, {}
    for name, (lam, gamma) in VARIANTS.items():
        leaves = {k: v.clone().requires_grad_() for k, v in case.inputs.items() if k != 'w'}
        y = elsa_op(
            leaves['features'],
            leaves['ghost_mul'],
            leaves['ghost_add'],
            leaves['h_attn'],
            lam,
            gamma,
            **options,
        )
        (y * case.inputs['w']).sum().backward()
        out[f'y_{name}'] = y
        grads.update({f'{k}_{name}': leaf.grad for k, leaf in leaves.items()})
    assert grads['ghost_mul_add_only'] is None and grads['ghost_add_mul_only'] is None
    case.check(out, grads)


@pytest.mark.golden('elsa', 'elsa_attn_*')
def test_token_mixer(case):
    kwargs = {k: v for k, v in case.meta['kwargs'].items() if (k, v) not in NEUTRAL}
    layer = case.load(ELSA(**kwargs))
    case.check(dict(y=layer(case.inputs['x'])))


@pytest.mark.golden('elsa', 'window_attention*')
def test_window_attention_becomes_the_hosts(case):
    kwargs = case.meta['kwargs']
    options = {k: kwargs[k] for k in ('qkv_bias', 'qk_scale') if k in kwargs}
    layer = WindowMSA(kwargs['dim'], kwargs['window_size'], kwargs['num_heads'], **options)
    state = {f'layers.3.blocks.0.attn.{k}': v for k, v in case.state.items()}
    prefix = 'backbone.stages.3.blocks.0.attn.w_msa.'
    mapped = {k.removeprefix(prefix): v for k, v in get_layout('elsa')(state).items()}
    assert torch.equal(mapped['relative_position_index'], layer.relative_position_index)
    layer.load_state_dict(mapped)
    x = case.inputs['x']
    case.check(dict(y=layer(x), y_masked=layer(x, case.inputs['mask'])))


def backbone(kwargs, **overrides):
    arch = dict(
        embed_dims=kwargs['embed_dim'], depths=kwargs['depths'], num_heads=kwargs['num_heads']
    )
    names = (
        *('img_size', 'patch_size', 'window_size', 'elsa_kernel', 'group_width', 'lam', 'gamma'),
        *('mlp_ratio', 'qkv_bias', 'drop_rate', 'drop_path_rate'),
    )
    options = {k: kwargs[k] for k in names if k in kwargs}
    if 'img_size' in kwargs:  # as in Swin, the classifiers' windows are not larger than the map
        stride = kwargs.get('patch_size', 4) * 2 ** (len(kwargs['depths']) - 1)
        options['window_size'] = min(kwargs.get('window_size', 7), kwargs['img_size'] // stride)
    return ELSASwin(arch, in_channels=kwargs.get('in_chans', 3), **options, **overrides)


@pytest.mark.golden('elsa', 'elsa_swin_tiny*')
def test_classifier(case):
    kwargs = case.meta['kwargs']
    model = nn.Module()
    model.backbone = backbone(kwargs)
    model.head = nn.Module()
    model.head.fc = nn.Linear(model.backbone.num_features[-1], kwargs['num_classes'])
    case.load(model, layout='elsa')
    nn.Module.train(model, False)
    out = {}
    stages = list(model.backbone.stages)
    for i, stage in enumerate(stages):
        part = stage.blocks[-1] if stage is stages[-1] else stage.downsample
        part.register_forward_hook(lambda m, x, y, i=i: out.update({f'stage{i + 1}': y}))
    features = model.backbone(case.inputs['x_int8'].float() / 4)[0]
    tokens = {k: v[0] if isinstance(v, tuple) else v for k, v in out.items()}
    stored = {k: case.outputs[k].shape[1] for k in tokens}
    thinned = {k: v[:, :: -(-v.shape[1] // stored[k])] for k, v in tokens.items()}
    case.check(dict(logits=model.head.fc(features.mean((2, 3))), **thinned))


@pytest.mark.golden('elsa', 'elsa_swin_det*')
def test_detector_backbone(case):
    depths = case.meta['kwargs']['depths']
    model = case.load(backbone(case.meta['kwargs'], out_indices=range(len(depths))), layout='elsa')
    model.eval()
    outs = model(case.inputs['x_int8'].float() / 4)
    case.check({f'out{i}': out for i, out in enumerate(outs)})


@pytest.mark.golden('elsa', 'elsa_swin_det*')
def test_official_checkpoint_as_init_cfg(case, tmp_path):
    torch.save(dict(state_dict=case.state), tmp_path / 'official.pth')
    init_cfg = dict(type='mmextra.OfficialCheckpoint', checkpoint=str(tmp_path / 'official.pth'))
    indices = range(len(case.meta['kwargs']['depths']))
    model = backbone(case.meta['kwargs'], out_indices=indices, init_cfg=init_cfg)
    model.init_weights()
    expected = backbone(case.meta['kwargs'], out_indices=indices)
    load_official(expected, case.state, 'elsa')
    for (name, a), b in zip(model.state_dict().items(), expected.state_dict().values()):
        assert torch.equal(a, b), name


@pytest.mark.golden('elsa', 'elsa_swin_det*')
def test_official_checkpoint_of_a_whole_detector(case):
    """Neck and heads keep their names; a backbone alone takes its part."""
    indices = range(len(case.meta['kwargs']['depths']))
    expected = backbone(case.meta['kwargs'], out_indices=indices)
    load_official(expected, case.state, 'elsa')
    official = {f'backbone.{k}': v for k, v in case.state.items()}
    further = {'neck.weight': torch.randn(3, 2), 'head.bias': torch.randn(3)}
    whole = nn.Module()
    whole.backbone = backbone(case.meta['kwargs'], out_indices=indices)
    whole.neck = nn.Linear(2, 3, bias=False)
    whole.head = nn.ParameterDict(dict(bias=torch.zeros(3)))
    alone = backbone(case.meta['kwargs'], out_indices=indices)
    for model in (whole, alone):
        load_official(model, {**official, **further}, 'elsa')
    for found in (whole.backbone, alone):
        for (name, a), b in zip(found.state_dict().items(), expected.state_dict().values()):
            assert torch.equal(a, b), name
    assert all(torch.equal(whole.state_dict()[k], v) for k, v in further.items())


# --- sizes and costs ------------------------------------------------------------------------------------------------


def measure(build, size=(224, 224)):
    """Parameters, multiply-adds and outputs, on the meta device."""
    linspace = functools.partial(torch.linspace, device='cpu')  # the host's Swin reads its values
    uncounted = mock.patch.object(_Aggregate, 'apply', lambda values, *args: values)
    with torch.device('meta'), mock.patch('torch.linspace', linspace), uncounted:
        model = build().requires_grad_(False)
        nn.Module.train(model, False)
        with FlopCounterMode(display=False) as counter:
            outs = model(torch.empty(1, 3, *size))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2, outs


@pytest.mark.parametrize(
    'size, dims, depths, params, macs',
    [
        ('tiny', 96, (2, 2, 6), 29_140_978, 4.64e9),
        ('small', 96, (2, 2, 18), 52_874_626, 9.34e9),
        ('base', 128, (2, 2, 18), 92_682_464, 16.37e9),
    ],
)
def test_size_and_cost_of_elsa_swin(size, dims, depths, params, macs):
    found, cost, _ = measure(lambda: ELSASwin(size))
    assert found + 8 * dims * 1000 + 1000 == params
    # The published figure leaves out the static filters.
    ghosts = sum(n * (dims * 2**i) * 49 * (56 // 2**i) ** 2 for i, n in enumerate(depths))
    assert cost - ghosts + 8 * dims * 1000 == pytest.approx(macs, rel=5e-3)


@pytest.mark.parametrize(
    'size, dims, layers, params, macs',
    [
        ('d1', 384, 4, 26_672_168, 7.13e9),
        ('d2', 512, 6, 58_721_248, 14.84e9),
        ('d3', 512, 8, 86_382_288, 21.45e9),
        ('d4', 768, 8, 192_722_672, 45.66e9),
        ('d5', 768, 12, 295_097_312, 74.40e9),
    ],
)
def test_size_and_cost_of_elsa_volo(size, dims, layers, params, macs):
    found, cost, _ = measure(lambda: ELSAVOLO(size))
    assert found + 2 * (1001 * dims - dims + 1000) == params  # head and auxiliary head
    ghosts = layers * (dims // 2) * 25 * 28**2
    assert cost - ghosts + 197 * dims * 1000 == pytest.approx(macs, rel=5e-3)


def test_group_width_decides_the_channels_of_queries_and_keys():
    for dim, width, expected in ((96, 4, 64), (128, 8, 88), (12, 4, 8)):
        assert ELSA(dim, 4, group_width=width).split == (expected, expected, dim)
    assert ELSA(12, 4, dim_qk=5, dim_v=16, group_width=4).split == (8, 8, 16)
    assert ELSASwin(SWIN, elsa_kernel=3).stages[0].blocks[0].attn.attn[0].weight.shape[1] == 8
    with (
        torch.device('meta'),
        mock.patch('torch.linspace', functools.partial(torch.linspace, device='cpu')),
    ):
        assert ELSASwin('tiny').stages[0].blocks[0].attn.attn[0].weight.shape[1] == 4


# --- the operation --------------------------------------------------------------------------------------------------


def slow_op(v, ghost_mul, ghost_add, attn, lam, gamma, kernel_size, dilation):
    """Pixel by pixel, tap by tap."""
    batch, channels, height, width = v.shape
    heads = attn.shape[1] // kernel_size**2
    y = torch.zeros_like(v)
    for b in range(batch):
        for c in range(channels):
            head = c // (channels // heads)
            for t in range(kernel_size**2):
                row, column = ((i - kernel_size // 2) * dilation for i in divmod(t, kernel_size))
                m = ghost_mul[b % len(ghost_mul), c].flatten()[t] ** lam if lam else 1
                g = ghost_add[b % len(ghost_add), c].flatten()[t] if gamma else 0
                for p in range(height):
                    for q in range(width):
                        if 0 <= p + row < height and 0 <= q + column < width:
                            a = attn[b, head * kernel_size**2 + t, p, q]
                            y[b, c, p, q] += (m * a + gamma * g) * v[b, c, p + row, q + column]
    return y


def operands(
    batch=2, channels=4, heads=2, size=(4, 5), kernel_size=3, ghosts=1, dtype=torch.double
):
    torch.manual_seed(0)
    filters = (ghosts, channels, kernel_size, kernel_size)
    return (
        torch.randn(batch, channels, *size, dtype=dtype),
        torch.rand(filters, dtype=dtype) + 0.5,
        torch.randn(filters, dtype=dtype),
        torch.randn(batch, heads * kernel_size**2, *size, dtype=dtype),
    )


@pytest.mark.parametrize('lam, gamma', [(0, 0), (0, 0.5), (1, 1), (0.5, 0), (2, 1)])
@pytest.mark.parametrize('ghosts, dilation', [(1, 1), (2, 2)])
def test_operation_against_loops(lam, gamma, ghosts, dilation):
    tensors = operands(ghosts=ghosts)
    expected = slow_op(*tensors, lam, gamma, 3, dilation)
    torch.testing.assert_close(elsa_op(*tensors, lam, gamma, 3, dilation), expected)


@pytest.mark.parametrize('lam, gamma, dilation', [(0, 1, 1), (1, 1, 2), (0.5, 0, 1)])
def test_gradients(lam, gamma, dilation):
    tensors = [t.requires_grad_() for t in operands(batch=1, channels=2, heads=1, size=(3, 4))]
    needed = [i for i in range(4) if not (i == 1 and not lam or i == 2 and not gamma)]

    def run(*given):
        full = list(tensors)
        for i, tensor in zip(needed, given):
            full[i] = tensor
        return elsa_op(*full, lam, gamma, 3, dilation)

    assert torch.autograd.gradcheck(run, [tensors[i] for i in needed])


def test_gradients_agree_with_autograd_through_the_shifts():
    v, m, g, a = (t.requires_grad_() for t in operands(size=(5, 5), ghosts=2))
    padded, y = F.pad(v, (1, 1, 1, 1)), 0
    heads = a.unflatten(1, (2, 9)).repeat_interleave(2, 1)
    for t in range(9):
        i, j = divmod(t, 3)
        weight = m[:, :, i, j, None, None] * heads[:, :, t] + g[:, :, i, j, None, None]
        y = y + weight * padded[..., i : i + 5, j : j + 5]
    expected = torch.autograd.grad(y.square().sum(), (v, m, g, a))
    ours = elsa_op(v, m, g, a, 1, 1, 3)
    torch.testing.assert_close(ours, y)
    for mine, theirs in zip(torch.autograd.grad(ours.square().sum(), (v, m, g, a)), expected):
        torch.testing.assert_close(mine, theirs)


def test_memory_does_not_grow_with_the_neighbourhood():
    """What is kept for the backward pass: values and weights, not a copy of the values for each neighbour."""
    kept = {}
    tensors = [t.requires_grad_() for t in operands(channels=32, size=(8, 8), kernel_size=7)]

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        elsa_op(*tensors, 0, 1, 7)
    values, _, _, weights = (t.numel() * t.element_size() for t in tensors)
    assert sum(kept.values()) < 2 * values + 2 * weights < 10 * values


def test_constant_values_stay_constant_but_for_the_mass_beyond_the_border():
    _, _, _, logits = operands(batch=1, heads=1, size=(7, 7))
    attn = logits.softmax(1)
    y = elsa_op(torch.full((1, 4, 7, 7), 3.0).double(), None, None, attn, 0, 0, 3)
    torch.testing.assert_close(y[..., 1:-1, 1:-1], torch.full((1, 4, 5, 5), 3.0).double())
    outside = attn[0, [0, 1, 2, 3, 6], 0, 0].sum()  # of the top left pixel
    torch.testing.assert_close(y[0, 0, 0, 0], 3 * (1 - outside))
    assert (y[..., 0, :] < 3).all()


def test_zero_attention_net_is_a_box_filter_and_a_depthwise_convolution():
    layer = redraw(ELSA(**TINY['ELSA'], lam=0, gamma=1))
    nn.init.zeros_(layer.attn[2].weight)
    nn.init.zeros_(layer.attn[2].bias)
    x = torch.randn(2, 5, 6, 12)
    v = layer.pre_proj(x.permute(0, 3, 1, 2))[:, -12:]
    box = F.avg_pool2d(v, 3, 1, 1)
    ghost = F.conv2d(v, layer.ghost_head.view(12, 1, 3, 3), padding=1, groups=12)
    expected = layer.post_proj((box + ghost).permute(0, 2, 3, 1))
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('part', ['query', 'key'])
def test_without_queries_or_keys_the_attention_is_the_same_everywhere(part):
    layer, maps = redraw(ELSA(**TINY['ELSA'], qkv_bias=True)), {}
    rows = slice(0, 8) if part == 'query' else slice(8, 16)
    with torch.no_grad():
        layer.pre_proj.weight[rows] = 0
        layer.pre_proj.bias[rows] = 0
    layer.attn[2].register_forward_hook(lambda m, x, y: maps.update(logits=y))
    layer(torch.randn(1, 6, 6, 12))
    logits = maps['logits']
    torch.testing.assert_close(logits, logits[..., 3:4, 3:4].expand_as(logits))


def test_unit_factors_equal_no_factors():
    v, _, g, a = operands()
    torch.testing.assert_close(
        elsa_op(v, torch.ones_like(g), g, a, 1, 1, 3), elsa_op(v, None, g, a, 0, 1, 3)
    )


def test_layer_is_translation_equivariant_in_the_interior():
    layer = redraw(ELSA(**TINY['ELSA']))
    x = torch.randn(1, 12, 12, 12)
    y, moved = layer(x), layer(x.roll((1, 1), (1, 2)))
    torch.testing.assert_close(moved[:, 4:-4, 4:-4], y[:, 3:-5, 3:-5], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dilation', [1, 2])
def test_layer_with_dilation_and_other_channels(dilation):
    layer = ELSA(6, 2, dim_v=4, kernel_size=3, dilation=dilation, group_width=4, qk_scale=0.5)
    x = torch.randn(2, 4, 5, 6)
    q, k, v = redraw(layer).pre_proj(x.permute(0, 3, 1, 2)).split((4, 4, 4), 1)
    attn = layer.attn(0.5 * q * k).view(2, 2, 9, 4, 5).softmax(2).view(2, 18, 4, 5)
    y = slow_op(v.detach(), *layer.ghost_head.detach(), attn.detach(), 1, 1, 3, dilation)
    expected = layer.post_proj(y.permute(0, 2, 3, 1))
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    'lam, gamma, shape',
    [(0, 1, (1, 12, 3, 3)), (1, 0, (1, 12, 3, 3)), (1, 1, (2, 1, 12, 3, 3)), (0, 0, None)],
)
def test_ghost_head_holds_what_is_used(lam, gamma, shape):
    layer = ELSA(**TINY['ELSA'], lam=lam, gamma=gamma)
    assert (None if layer.ghost_head is None else tuple(layer.ghost_head.shape)) == shape
    mul, add = layer.ghosts()
    assert (mul is not None, add is not None) == (bool(lam), bool(gamma))
    layer(torch.randn(1, 4, 4, 12)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_initial_ghost_head():
    layer = ELSA(96, 3, kernel_size=7)
    mul, add = layer.ghosts()
    assert mul.std().item() == pytest.approx(1, abs=0.05) and abs(mul.mean().item()) < 0.05
    assert add.std().item() == pytest.approx(0.02, abs=0.002)


def test_scale_of_one_means_none_and_zero_is_kept():
    assert ELSA(12, 2).scale == pytest.approx(6**-0.5)
    assert ELSA(12, 2, qk_scale=1).scale == 1 and ELSA(12, 2, qk_scale=0).scale == 0


def test_operation_runs_in_single_precision():
    tensors = [t.float() for t in operands()]
    expected = elsa_op(*tensors, 1, 1, 3)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(elsa_op(*tensors, 1, 1, 3), expected)
    halves = [t.half() for t in tensors]
    out = elsa_op(*halves, 1, 1, 3)
    assert out.dtype == torch.half
    assert torch.equal(out, elsa_op(*(t.float() for t in halves), 1, 1, 3).half())


@pytest.mark.parametrize('name', ['ELSASwin', 'ELSAVOLO'])
def test_can_be_traced(name):
    """As the host's tool does that counts operations."""
    model, x = redraw(MODELS.build(dict(type=name, **TINY[name])), 0.1), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        traced = torch.jit.trace(model, (x.flip(0),), check_trace=False)
        torch.testing.assert_close(traced(x), model(x))
    assert get_model_complexity_info(model, (3, 64, 64))['flops'] > 0


def test_depthwise_convolution_of_a_filter_for_each_image():
    v, filters = torch.randn(2, 3, 5, 5), torch.randn(2, 3, 3, 3)
    expected = torch.cat([depthwise(v[i : i + 1], filters[i : i + 1], 2) for i in range(2)])
    torch.testing.assert_close(depthwise(v, filters, 2), expected)
    one = F.conv2d(v[:1, :1], filters[:1, :1], padding=2, dilation=2)
    torch.testing.assert_close(expected[:1, :1], one)


def test_block_recomputes():
    block = redraw(ELSABlock(**TINY['ELSABlock'], with_cp=True)).train()
    x = torch.randn(2, 20, 12)
    grads = []
    for block.with_cp in (True, False):
        block(x, (4, 5)).square().sum().backward()
        grads.append([p.grad.clone() for p in block.parameters()])
        block.zero_grad()
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


# --- backbones ------------------------------------------------------------------------------------------------------


def test_kinds_of_blocks():
    model = ELSASwin(**TINY['ELSASwin'])
    kinds = [[type(block).__name__ for block in stage.blocks] for stage in model.stages]
    assert kinds == [['ELSABlock']] * 3 + [['SwinBlock'] * 2]
    rates = ELSASwin(**{**TINY['ELSASwin'], 'drop_path_rate': 0.4})
    drops = [stage.blocks[0].drop_path.drop_prob for stage in rates.stages[:3]]
    assert drops == pytest.approx([0, 0.1, 0.2])
    assert rates.stages[3].blocks[1].attn.drop.drop_prob == pytest.approx(0.4)
    dropped = ELSASwin(**TINY['ELSASwin'], drop_rate=0.3)
    rates = [m.p for m in dropped.modules() if type(m) is nn.Dropout and m.p]
    assert rates == [0.3] * 11  # the embedding, twice in each of five MLPs
    assert not any(type(m) is nn.Dropout for m in dropped.stages[0].blocks[0].attn.modules())


def test_small_maps_of_the_last_stage():
    """One stage returned: a classifier, no shift in a map of one window. Several: padding and shift."""
    options = {**TINY['ELSASwin'], 'pad_small_map': None}
    assert ELSASwin(**options).stages[3].blocks[1].attn.pad_small_map
    single = ELSASwin(**{**options, 'out_indices': (3,)})
    assert not single.stages[3].blocks[1].attn.pad_small_map
    with pytest.raises(AssertionError, match='smaller than the window'):
        single(torch.randn(1, 3, 64, 64))


def test_volo_changes_its_local_attention_only():
    model = ELSAVOLO(**TINY['ELSAVOLO'], qkv_bias=True)
    layers = [m for m in model.modules() if isinstance(m, ELSA)]
    assert len(layers) == 1 and layers[0].kernel_size == 3 and layers[0].scale == 1
    assert layers[0].lam == layers[0].gamma == 1 and layers[0].pre_proj.bias is not None
    assert not any(type(m).__name__ == 'OutlookAttention' for m in model.modules())
    assert (
        ELSAVOLO(**{**TINY['ELSAVOLO'], 'qkv_bias': False}).network[0][0].attn.pre_proj.bias is None
    )


@pytest.mark.parametrize(
    'build, message',
    [
        (lambda: ELSA(12, 2, kernel_size=4), 'kernel_size must be odd, got 4'),
        (lambda: ELSA(12, 5), 'num_heads=5'),
        (lambda: ELSASwin('huge'), "arch 'huge' is unknown"),
        (lambda: ELSASwin(dict(embed_dims=8)), 'embed_dims, depths, num_heads'),
        (lambda: elsa_op(*operands(), 1, 1, 5), 'got 18'),
        (lambda: elsa_op(*operands(channels=3), 1, 1, 3), '3 channels of v'),
        (lambda: elsa_op(operands()[0], None, *operands()[2:], 1, 1, 3), 'ghost_mul must have'),
        (lambda: elsa_op(*operands(batch=3, ghosts=2), 0, 1, 3), 'ghost_add must have'),
        (lambda: ELSAVOLO(outlook_cfg=dict(kernel_size=5)), 'set elsa_cfg, not outlook_cfg'),
    ],
)
def test_wrong_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# --- detectors and segmentors ---------------------------------------------------------------------------------------


def dense_model(name, **backbone):
    """The model of a shipped dense config."""
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    DefaultScope.get_instance(name, scope_name=cfg.default_scope)
    cfg.model.backbone.update(init_cfg=None, **backbone)
    return cfg.model


def shrunk(name):
    """The same with a tiny backbone and heads."""
    model = dense_model(name, arch=SWIN, group_width=4, elsa_kernel=3)
    indices = model.backbone.out_indices
    dims = [8 * 2**i for i in indices]
    if 'neck' in model:
        assert len(model.neck.in_channels) == len(indices)
        model.neck.in_channels = dims
        if 'roi_head' in model:
            model.roi_head.bbox_head.fc_out_channels = 16
            model.roi_head.mask_head.num_convs = 1
            model.train_cfg.rpn_proposal.max_per_img = 20
    else:
        model.decode_head.update(in_channels=dims, channels=16)
        model.auxiliary_head.update(in_channels=32, channels=16)
    return model


def test_maps_in_a_detector_at_800x1333():
    model = dense_model('mask-rcnn_elsa-swin-tiny_fpn_ms-crop-1x_coco')
    _, _, outs = measure(lambda: MODELS.build(model.backbone), (800, 1333))
    assert [tuple(out.shape[1:]) for out in outs] == [
        (96, 200, 334),
        (192, 100, 167),
        (384, 50, 84),
        (768, 25, 42),
    ]
    assert [out.shape[1] for out in outs] == model.neck.in_channels


@pytest.mark.parametrize(
    'name', ['mask-rcnn_elsa-swin-tiny_fpn_ms-crop-1x_coco', 'retinanet_elsa-swin-tiny_fpn_1x_coco']
)
def test_detectors_train(name):
    from mmdet.testing import demo_mm_inputs

    model = MODELS.build(shrunk(name))
    inputs = demo_mm_inputs(
        1, [[3, 64, 96]], num_items=[2], num_classes=4, with_mask='mask' in name
    )
    losses = model(**model.data_preprocessor(inputs, training=True), mode='loss')
    total = sum(v if torch.is_tensor(v) else sum(v) for k, v in losses.items() if 'loss' in k)
    total.backward()
    assert torch.isfinite(total)
    assert all(p.grad is not None for p in model.backbone.parameters())


@pytest.mark.parametrize(
    'name',
    [
        'elsa-swin-tiny_upernet_8xb2-160k_ade20k-512x512',
        'elsa-swin-tiny_fpn_8xb4-40k_ade20k-512x512',
    ],
)
def test_segmentors_train(name):
    from mmengine.model import revert_sync_batchnorm
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    model = revert_sync_batchnorm(MODELS.build(shrunk(name)))
    sample = SegDataSample(
        gt_sem_seg=PixelData(data=torch.randint(0, 150, (1, 64, 96))),
        metainfo=dict(img_shape=(64, 96), ori_shape=(64, 96)),
    )
    losses = model.loss(torch.randn(2, 3, 64, 96), [sample, sample])
    total = sum(v for k, v in losses.items() if 'loss' in k)
    total.backward()
    assert torch.isfinite(total)
    assert all(p.grad is not None for p in model.backbone.parameters())
