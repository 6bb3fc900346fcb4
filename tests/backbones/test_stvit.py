"""STViT and STViT-R: the authors' numbers, their sizes, slow references, and the dense tasks."""

import functools
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmextra.backbones.stvit import (
    SemanticAttentionBlock,
    SemanticBlock,
    SemanticPooling,
    SemanticRecoveryBlock,
    STViT,
    STViTRSwin,
    STViTSwin,
)
from mmextra.backbones.stvit.blocks import from_windows, published_mask, semantic_grid, to_windows
from mmextra.backbones.stvit.deit import SemanticEncoderLayer
from mmextra.engine.checkpoint import get_layout, load_official
from mmextra.registry import MODELS

CONFIGS = Path(__file__).parents[2] / 'configs' / 'stvit'
BLOCK = dict(embed_dims=8, num_heads=2, mlp_ratio=2.0)
SWIN = dict(embed_dims=8, depths=[1, 1, 6, 1], num_heads=[1, 2, 2, 4])
TINY = {
    'SemanticBlock': BLOCK,
    'SemanticAttentionBlock': BLOCK,
    'SemanticRecoveryBlock': BLOCK,
    'SemanticPooling': dict(embed_dims=8, num_semantic=2),
    'STViT': dict(
        arch=dict(embed_dims=24, num_layers=4, num_heads=2, feedforward_channels=48),
        img_size=64,
        base_layers=1,
        num_semantic=2,
        out_type='featmap',
        out_indices=(0, 1, 3),
    ),
    'STViTRSwin': dict(
        arch=SWIN,
        img_size=64,
        window_size=4,
        window_sample_size=2,
        k_window_sizes=(8, 12),
        restore_k_window_size=6,
        mlp_ratio=2.0,
        out_indices=(0, 1, 2, 3),
    ),
    'STViTSwin': dict(
        arch=dict(embed_dims=8, depths=[1, 1, 4, 1], num_heads=[1, 2, 2, 4]),
        img_size=64,
        window_size=2,
        k_window_sizes=(4, 6),
        base_blocks=1,
        out_indices=(0, 1, 2, 3),
    ),
}


def redraw(module, scale=0.5):
    """Draw all parameters anew, so that no branch vanishes."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=scale)
    nn.Module.train(module, False)
    return module


def options(meta, **renamed):
    """A block's arguments from those of the authors' class."""
    kwargs = {k: meta[k] for k in ('num_heads', 'mlp_ratio', 'qkv_bias') if k in meta}
    kwargs.update({ours: meta[theirs] for ours, theirs in renamed.items() if theirs in meta})
    return dict(embed_dims=meta['dim'], **kwargs)


def load_block(block, case):
    """Load a single block through the layout of the whole backbone, as block 1 of the third stage."""
    state = {f'layers.2.blocks.1.{k}': v for k, v in case.state.items()}
    prefix = 'backbone.stages.2.blocks.0.blocks.1.'
    mapped = {k.removeprefix(prefix): v for k, v in get_layout('stvit')(state).items()}
    block.load_state_dict(mapped)
    return block.eval()


def side(tokens):
    return (round(tokens.shape[1] ** 0.5),) * 2


# --- the authors' numbers -------------------------------------------------------------------------------------------


@pytest.mark.golden('stvit', 'block*')
def test_block(case):
    block = load_block(
        SemanticBlock(**options(case.meta['kwargs'], window_size='window_size')), case
    )
    x, y = case.inputs['x'], case.inputs['y']
    case.check(
        dict(out_local=block(x, hw_shape=side(x)), out_global=block(x), out_cross=block(x, y))
    )


@pytest.mark.golden('stvit', 'semantic_block*')
def test_semantic_attention_of_classifiers(case):
    kwargs = case.meta['kwargs']
    names = dict(window_size='window_size', sample_size='sample_window_size', shortcut='shortcut')
    x, sem = case.inputs['x'], case.inputs['sem']
    block = SemanticAttentionBlock(**options(kwargs, **names), variant='cls')
    load_block(block, case)
    out = dict(out=block(x, side(x)), out_given=block(x, side(x), sem))
    block.shortcut = not block.shortcut
    out['out_othershortcut'] = block(x, side(x))
    case.check(out)


@pytest.mark.golden('stvit', 'det_semantic_block*')
def test_semantic_attention_of_detectors(case):
    names = dict(
        window_size='window_size', sample_size='window_sample_size', key_size='k_window_size'
    )
    arguments = options(case.meta['kwargs'], **names)
    x, x2 = case.inputs['x'], case.inputs['x2']
    size, size2 = (case.meta['H'], case.meta['W']), (case.meta['H2'], case.meta['W2'])
    masked, plain = (
        load_block(SemanticAttentionBlock(**arguments, pad_mask=pad_mask), case)
        for pad_mask in ('published', False)
    )
    out = masked(x, size)
    grid = semantic_grid(size, masked.window_size, masked.sample_size)
    case.check(
        dict(
            out=out,
            out_given=masked(x, size, out),
            out_nopad=masked(x2, size2),
            out_nomask=plain(x, size),
            out_nopad_nomask=plain(x2, size2),
            grid=torch.tensor(grid),
        )
    )


@pytest.mark.golden('stvit', 'det_restore_block*')
def test_recovery_of_detectors(case):
    names = dict(
        window_size='window_size', sample_size='window_sample_size', key_size='k_window_size'
    )
    arguments = options(case.meta['kwargs'], **names)
    x, y, size = case.inputs['x'], case.inputs['y'], (case.meta['H'], case.meta['W'])
    masked, plain = (
        load_block(SemanticRecoveryBlock(**arguments, pad_mask=pad_mask), case)
        for pad_mask in ('published', False)
    )
    case.check(dict(out=masked(x, size, y), out_nomask=plain(x, size, y)))


def arch(kwargs):
    return dict(
        embed_dims=kwargs['embed_dim'], depths=kwargs['depths'], num_heads=kwargs['num_heads']
    )


@pytest.mark.golden('stvit', 'stvit_r_swin*')
def test_classifier(case):
    kwargs = case.meta['kwargs']
    names = ('img_size', 'window_size', 'mlp_ratio', 'qkv_bias', 'use_global', 'shortcut')
    options = {k: kwargs[k] for k in names if k in kwargs}
    model = nn.Module()
    model.backbone = STViTRSwin(
        arch(kwargs), 'cls', in_channels=kwargs.get('in_chans', 3), **options
    )
    model.head = nn.Module()
    model.head.fc = nn.Linear(8 * kwargs['embed_dim'], kwargs['num_classes'])
    case.load(model, layout='stvit')
    nn.Module.train(model, False)
    out, blocks = {}, {}

    def keep(name, store):
        return lambda module, inputs, output: store.update({name: output})

    for u, unit in enumerate(model.backbone.stages[2].blocks):
        for j, block in enumerate(unit.blocks):
            block.register_forward_hook(keep(f'stage3_block_{6 * u + j}', blocks))
    for i in range(3):
        model.backbone.stages[i].downsample.register_forward_hook(
            lambda module, inputs, output, i=i: out.update({f'stage{i + 1}': output[0]})
        )
    model.backbone.stages[3].blocks[-1].register_forward_hook(keep('stage4', out))
    features = model.backbone(case.inputs['x_int8'].float() / 4)[0]
    out['logits'] = model.head.fc(features.mean((2, 3)))
    out = {**out, **blocks}
    # Large ones are stored at every n-th token.
    case.check({k: v if k == 'logits' else thinned(v, case.outputs.get(k)) for k, v in out.items()})


def thinned(tokens, stored):
    if stored is None or stored.shape[1] == tokens.shape[1]:
        return tokens
    return tokens[:, :: -(-tokens.shape[1] // stored.shape[1])]


def detector_options(kwargs):
    """The backbone's arguments from those of the authors' class."""
    return dict(
        arch=arch(kwargs),
        variant='dense',
        in_channels=kwargs.get('in_chans', 3),
        window_size=kwargs.get('window_size', 7),
        window_sample_size=kwargs.get('window_sample_size', 3),
        k_window_sizes=(kwargs.get('k_window_size_1', 14), kwargs.get('k_window_size_2', 21)),
        restore_k_window_size=kwargs.get('restore_k_window_size', 27),
        mlp_ratio=kwargs.get('mlp_ratio', 4.0),
        qkv_bias=kwargs.get('qkv_bias', True),
        pad_mask='published' if kwargs.get('pad_mask', True) else False,
        out_indices=(0, 1, 2, 3),
    )


def detector_backbone(kwargs, **overrides):
    return STViTRSwin(**detector_options(kwargs), **overrides)


@pytest.mark.golden('stvit', 'det_backbone*')
def test_detector_backbone(case):
    model = case.load(detector_backbone(case.meta['kwargs']), layout='stvit')
    model.eval()
    outs = model(case.inputs['x_int8'].float() / 4)
    stored = case.series('out', 'outputs')
    steps = [-(-out.shape[3] // like.shape[3]) for out, like in zip(outs, stored)]
    case.check({f'out{i}': out[..., ::n, ::n] for i, (out, n) in enumerate(zip(outs, steps))})


@pytest.mark.golden('stvit', 'det_backbone*')
def test_official_detector_checkpoint_as_init_cfg(case, tmp_path):
    state = {f'backbone.{k}': v for k, v in case.state.items()}
    torch.save(dict(model=state), tmp_path / 'official.pth')
    init_cfg = dict(type='mmextra.OfficialCheckpoint', checkpoint=str(tmp_path / 'official.pth'))
    model = detector_backbone(case.meta['kwargs'], init_cfg=init_cfg)
    model.init_weights()
    expected = detector_backbone(case.meta['kwargs'])
    load_official(expected, case.state, 'stvit')
    for (name, a), b in zip(model.state_dict().items(), expected.state_dict().values()):
        assert torch.equal(a, b), name
    outs = model(case.inputs['x_int8'].float() / 4)
    assert len(outs) == 4


@pytest.mark.golden('stvit', 'det_backbone*')
def test_official_checkpoint_of_a_whole_detector(case, tmp_path):
    """Released detectors hold neck and heads, whose keys mmdet has kept."""
    cfg = shrunk('mask-rcnn_stvit-r-swin-small_fpn_1x_coco')
    kwargs = case.meta['kwargs']
    cfg.backbone.update(detector_options(kwargs))
    cfg.neck.in_channels = [kwargs['embed_dim'] * 2**i for i in range(4)]
    source = MODELS.build(cfg)
    rest = {k: v for k, v in source.state_dict().items() if not k.startswith('backbone.')}
    released = {**rest, **{f'backbone.{k}': v for k, v in case.state.items()}}
    torch.save(dict(state_dict=released), tmp_path / 'official.pth')
    load_official(source.backbone, case.state, 'stvit')
    init_cfg = dict(type='mmextra.OfficialCheckpoint', checkpoint=str(tmp_path / 'official.pth'))
    detector = MODELS.build(dict(cfg, init_cfg=init_cfg))
    alone = detector_backbone(kwargs, init_cfg=init_cfg)
    for model, expected in ((detector, source), (alone, source.backbone)):
        model.init_weights()
        for (name, a), b in zip(model.state_dict().items(), expected.state_dict().values()):
            assert torch.equal(a, b), name


def test_layout_of_global_tokens():
    state = {'layers.2.semantic_token2': torch.ones(1, 36, 32), 'norm.weight': torch.ones(2)}
    mapped = get_layout('stvit')({**state, 'layers.3.blocks.0.norm1.weight': torch.ones(2)})
    assert list(mapped) == [
        'backbone.stages.2.blocks.0.global_tokens',
        'backbone.norm3.weight',
        'backbone.stages.3.blocks.0.norm1.weight',
    ]


# --- sizes and costs ------------------------------------------------------------------------------------------------


def measure(build, size=(224, 224)):
    """Parameters and multiply-adds, on the meta device."""
    linspace = functools.partial(torch.linspace, device='cpu')  # the host's Swin reads its values
    with torch.device('meta'), mock.patch('torch.linspace', linspace), torch.no_grad():
        model = build()
        nn.Module.train(model, False)
        with FlopCounterMode(display=False) as counter:
            outs = model(torch.empty(1, 3, *size))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2, outs


@pytest.mark.parametrize(
    'size, dims, params, macs, global_tokens',
    [
        ('tiny', 384, 28_320_214, 3.60e9, 13_824),
        ('small', 384, 49_625_518, 5.80e9, 13_824),
        ('base', 512, 87_812_336, 10.23e9, 18_432),
    ],
)
def test_size_and_cost_of_stvit_r_swin(size, dims, params, macs, global_tokens):
    found, cost, _ = measure(lambda: STViTRSwin(size, 'cls'))
    head = 2 * dims * 1000
    assert found + head + 1000 == params
    # The published figure counts the keys of each window: 4 x (9 + 100), where the tokens are 36 + 196.
    units = 3 if size != 'tiny' else 1
    saved = units * (4 * (9 + 100) - (36 + 196)) * 2 * dims**2
    assert cost + saved + head == pytest.approx(macs, rel=5e-3)
    short = {**STViTRSwin.settings_of(size), 'depths': [1, 1, 6, 1]}
    assert (
        STViTRSwin(short, 'cls', use_global=True).stages[2].blocks[0].global_tokens.numel()
        == global_tokens
    )


def test_cost_of_the_demonstrations():
    """Semantic tokens save 45 % of the plain network's multiply-adds at least; pooled ones are as deep."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    init_default_scope('mmpretrain')
    costs, depths = {}, set()
    for kind in ('-plain', '', '-pooled'):
        cfg = Config.fromfile(CONFIGS / f'stvit_vit-nano{kind}_1xb32-10e_distractors_demo.py')
        backbone = cfg.model.backbone
        _, costs[kind], _ = measure(functools.partial(MODELS.build, backbone), (64, 64))
        depths.add(backbone.arch.num_layers)
    assert costs['-pooled'] < costs[''] < 0.55 * costs['-plain']
    assert depths == {8}


def test_both_variants_have_the_same_parameters():
    shapes = [
        {k: v.shape for k, v in STViTRSwin(SWIN, variant).state_dict().items()}
        for variant in ('cls', 'dense')
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    'size, dims, params, macs',
    [
        ('tiny', 192, 5_761_961, 0.523e9),
        ('small', 384, 22_213_481, 1.910e9),
        ('base', 768, 87_188_201, 7.274e9),
    ],
)
def test_size_and_cost_of_stvit(size, dims, params, macs):
    found, cost, _ = measure(lambda: STViT(f'deit-{size}'))
    assert found + 1001 * dims - dims + 1000 == params
    assert cost + 1000 * dims == pytest.approx(macs, rel=5e-3)


def test_cost_of_stvit_beside_deit():
    """DeiT-S: 4.6 G; at most 42 % of it with 16 semantic tokens; 1.97 and 2.03 G with 3 and 4 generating layers."""
    from mmpretrain.models import VisionTransformer

    stock = measure(lambda: VisionTransformer('deit-small'))[1]
    costs = [measure(lambda n=n: STViT('deit-small', stgm_layers=n))[1] for n in (2, 3, 4)]
    assert costs[0] <= 0.42 * stock
    assert costs[1:] == pytest.approx([1.97e9, 2.03e9], rel=3e-3)


def test_stvit_swin_saves_a_quarter():
    from mmpretrain.models import SwinTransformer

    ours, stock = measure(lambda: STViTSwin('tiny')), measure(lambda: SwinTransformer('tiny'))
    assert ours[1] / stock[1] == pytest.approx(0.75, abs=0.015)
    assert ours[2][0].shape[2:] == (3, 3)  # 6x6 semantic tokens, merged


@torch.no_grad()
def test_stvit_swin_pads_maps_smaller_than_a_window():
    options = dict(arch=dict(embed_dims=8, depths=[2, 2, 6, 2], num_heads=[1, 2, 2, 4]))
    model = STViTSwin(**options, pad_small_map=True, out_indices=(0, 1, 2, 3)).eval()
    outs = model(torch.randn(1, 3, 70, 40))
    assert [tuple(out.shape[2:]) for out in outs] == [(18, 10), (9, 5), (3, 3), (2, 2)]
    with pytest.raises(AssertionError, match='pad_small_map=True'):
        STViTSwin(**options)(torch.randn(1, 3, 70, 40))
    small, large = (STViTSwin(**options, pad_small_map=pad).eval() for pad in (False, True))
    large.load_state_dict(small.state_dict())
    x = torch.randn(1, 3, 260, 260)  # maps larger than a window everywhere
    torch.testing.assert_close(large(x), small(x))


# --- windows of the detectors, the slow way -------------------------------------------------------------------------


def neighbourhood(grid, hidden, row, column, size, stride, pad_value):
    """Tokens around a window one by one: those beyond the map are `pad_value`; and which are hidden."""
    before = (size - stride) // 2
    tokens, masked = [], []
    for i in range(size):
        for j in range(size):
            r, c = row * stride - before + i, column * stride - before + j
            inside = 0 <= r < grid.shape[0] and 0 <= c < grid.shape[1]
            tokens.append(grid[r, c] if inside else torch.full_like(grid[0, 0], pad_value))
            masked.append(hidden(r, c, inside))
    return torch.stack(tokens), torch.tensor(masked)


def attend(block, query, keys, masked):
    """Multi-head attention of one window, head by head."""
    attn = block.attn
    kv = F.linear(block.norm1(keys), attn.kv.weight, attn.kv.bias)
    q = F.linear(block.norm1(query), attn.q.weight, attn.q.bias)
    dims, heads = q.shape[-1], []
    for h in range(attn.num_heads):
        part = slice(h * dims // attn.num_heads, (h + 1) * dims // attn.num_heads)
        logits = q[:, part] @ kv[:, :dims][:, part].T / (dims // attn.num_heads) ** 0.5
        weights = (logits - 1000.0 * masked).softmax(-1)
        heads.append(weights @ kv[:, dims:][:, part])
    return attn.proj(torch.cat(heads, -1))


def finish(block, x, branch):
    y = x + block.gamma1.weight * branch
    hidden = F.gelu(block.ffn.layers[0][0](block.norm2(y)))
    return y + block.ffn.gamma2.weight * block.ffn.layers[1](hidden)


def slow_select(block, x, size, pad_value=0.0, mask=True):
    """Reference of SemanticAttentionBlock, 'dense', one image."""
    w, n = block.window_size, block.sample_size
    rows, columns = -(-size[0] // w), -(-size[1] // w)
    grid = x.view(*size, -1)
    padded = F.pad(grid, (0, 0, 0, columns * w - size[1], 0, rows * w - size[0]))
    out = x.new_zeros(rows * n, columns * n, x.shape[-1])
    for r in range(rows):
        for c in range(columns):
            window = padded[r * w : (r + 1) * w, c * w : (c + 1) * w]
            cells = [slice(i * w // n, -(-(i + 1) * w // n)) for i in range(n)]
            query = torch.stack([window[a, b].amax((0, 1)) for a in cells for b in cells])
            keys, hidden = neighbourhood(
                grid, lambda i, j, inside: mask and not inside, r, c, block.key_size, w, pad_value
            )
            done = finish(block, query, attend(block, query, keys, hidden))
            out[r * n : (r + 1) * n, c * n : (c + 1) * n] = done.view(n, n, -1)
    return out.flatten(0, 1)


def slow_recover(block, x, size, semantic, pad_value=0.0, mask=True):
    """Reference of SemanticRecoveryBlock with a neighbourhood, one image."""
    w, n = block.window_size, block.sample_size
    rows, columns = -(-size[0] // w), -(-size[1] // w)
    tokens, out = semantic.view(rows * n, columns * n, -1), torch.zeros_like(x)
    for i, token in enumerate(x):
        r, c = i // size[1] // w, i % size[1] // w
        keys, hidden = neighbourhood(
            tokens, lambda i, j, inside: mask and not inside, r, c, block.key_size, n, pad_value
        )
        out[i] = finish(block, token, attend(block, token[None], keys, hidden)[0])
    return out


@pytest.mark.parametrize('size', [(5, 7), (4, 8), (3, 4)])
@pytest.mark.parametrize('mask', ['exact', False])
def test_windows_against_loops(size, mask):
    windows = dict(window_size=4, sample_size=2, pad_mask=mask)
    select = redraw(SemanticAttentionBlock(**BLOCK, **windows, key_size=7)).double()
    recover = redraw(SemanticRecoveryBlock(**BLOCK, **windows, key_size=4)).double()
    x = torch.randn(2, size[0] * size[1], 8, dtype=torch.double)
    semantic = select(x, size)
    for b in range(2):
        # Masked padding may hold anything; else it is zero before the norm.
        value = 1e3 if mask else 0.0
        expected = slow_select(select, x[b], size, value, bool(mask))
        torch.testing.assert_close(semantic[b], expected)
        recovered = slow_recover(recover, x[b], size, semantic[b], value, bool(mask))
        torch.testing.assert_close(recover(x, size, semantic)[b], recovered)


def test_padding_takes_part_without_a_mask():
    block = redraw(SemanticAttentionBlock(**BLOCK, window_size=4, sample_size=2, key_size=6))
    x = torch.randn(1, 12, 8)
    exact = block(x, (3, 4))
    block.pad_mask = False
    assert (block(x, (3, 4)) - exact).abs().max() > 1e-2


@pytest.mark.parametrize(
    'pad, hidden', [((2, 3), (2, 3)), ((0, 3), (5, 3)), ((2, 0), (2, 6)), ((0, 0), (5, 6))]
)
def test_published_mask_hides_the_corner_the_strip_or_all(pad, hidden):
    expected = torch.zeros(5, 6)
    expected[5 - hidden[0] :, 6 - hidden[1] :] = -1000
    assert torch.equal(published_mask(torch.zeros(()), (5, 6), pad)[0, ..., 0], expected)


def test_window_functions_undo_each_other():
    x = torch.arange(2 * 24.0).view(2, 24, 1)
    windows = to_windows(x, (4, 6), 2)
    assert windows[1, :, 0].tolist() == [2, 3, 8, 9]
    assert torch.equal(from_windows(windows, (4, 6), 2), x)


# --- STViT-R --------------------------------------------------------------------------------------------------------


def shapes_of_blocks(model):
    shapes = []
    for unit in model.stages[2].blocks:
        for block in unit.blocks:
            block.register_forward_hook(lambda m, i, out: shapes.append(out.shape[1]))
    return shapes


def test_number_of_semantic_tokens():
    model = STViTRSwin({**SWIN, 'depths': [1, 1, 12, 1]}, 'cls')
    shapes = shapes_of_blocks(model)
    with torch.no_grad():
        model(torch.randn(1, 3, 224, 224))
    assert shapes == [196, 36, 36, 36, 36, 196] * 2
    model = STViTRSwin(SWIN, 'dense')
    shapes = shapes_of_blocks(model)
    with torch.no_grad():
        model(torch.randn(1, 3, 128, 240))  # 8x15 tokens, 2x3 windows
    assert shapes == [120, 54, 54, 54, 54, 120]


@pytest.mark.parametrize('variant, size', [('cls', 128), ('dense', 96)])
def test_without_gammas_the_third_stage_is_its_swin_blocks(variant, size):
    options = {**TINY['STViTRSwin'], 'arch': {**SWIN, 'depths': [1, 1, 12, 1]}, 'variant': variant}
    model = redraw(STViTRSwin(**options, use_global=variant == 'cls', shortcut=variant == 'cls'))
    units, x = model.stages[2].blocks, torch.randn(2, (size // 16) ** 2, 32)
    hw_shape = (size // 16,) * 2
    for name, parameter in units.named_parameters():
        if 'gamma' in name:
            nn.init.zeros_(parameter)
    expected = x
    for unit in units:
        expected = unit.blocks[0](expected, hw_shape)
    torch.testing.assert_close(model.stages[2](x, hw_shape, do_downsample=False)[0], expected)


def test_any_input_size_in_dense():
    model = STViTRSwin(SWIN, 'dense', out_indices=(0, 1, 2, 3))
    with torch.no_grad():
        outs = model(torch.randn(1, 3, 333, 500))
    assert [tuple(out.shape[2:]) for out in outs] == [(84, 125), (42, 63), (21, 32), (11, 16)]


@torch.no_grad()
def test_images_are_padded_to_whole_patches():
    model = redraw(STViTRSwin(**TINY['STViTRSwin']), 0.3)
    x = torch.randn(1, 3, 61, 34)
    for a, b in zip(model(x), model(F.pad(x, (0, 2, 0, 3)))):
        torch.testing.assert_close(a, b)


def test_global_tokens_enter_the_query_and_the_residual_only():
    """Block 2 of the first unit: queries and residual s + G, keys [s; x] without G."""
    options = {**TINY['STViTRSwin'], 'variant': 'cls', 'arch': {**SWIN, 'depths': [1, 1, 12, 1]}}
    model = redraw(STViTRSwin(**options, use_global=True), 0.3)
    unit, other = model.stages[2].blocks
    x, seen = torch.randn(1, 64, 32), {}
    unit.blocks[1].register_forward_hook(lambda m, i, out: seen.update(s=out))
    unit.blocks[2].register_forward_hook(lambda m, i, out: seen.update(out=out))
    image = unit.blocks[0](x, (8, 8))
    unit(x, (8, 8))
    s = seen['s']
    expected = unit.blocks[2](s + unit.global_tokens, torch.cat((s, image), 1))
    torch.testing.assert_close(seen['out'], expected)
    assert unit.global_tokens.shape == (1, 16, 32) and other.global_tokens is None


def test_layer_depths_follow_the_units():
    model = STViTRSwin(**{**TINY['STViTRSwin'], 'arch': {**SWIN, 'depths': [2, 2, 12, 2]}})
    depth = model.get_layer_depth
    assert depth('patch_embed.projection.0.conv.weight') == (0, 20)
    assert depth('stages.1.blocks.1.norm1.weight')[0] == 4
    assert depth('stages.2.blocks.0.blocks.0.norm1.weight')[0] == 5
    assert depth('stages.2.blocks.1.blocks.5.norm1.weight')[0] == 16
    assert depth('stages.2.downsample.norm.weight')[0] == 16
    assert depth('stages.3.blocks.1.norm1.weight')[0] == 18
    assert depth('backbone.stages.2.blocks.0.global_tokens', 'backbone.')[0] == 7
    assert depth('head.fc.weight', 'backbone.') == (19, 20)


# --- STViT ----------------------------------------------------------------------------------------------------------


def test_semantic_layer_is_the_hosts_layer_when_it_attends_to_itself():
    from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer

    for bias in (True, False):
        host = redraw(TransformerEncoderLayer(8, 2, 16, qkv_bias=bias))
        ours = SemanticEncoderLayer(8, 2, 16, qkv_bias=bias).eval()
        ours.load_state_dict(host.state_dict())
        x = torch.randn(2, 5, 8)
        torch.testing.assert_close(ours(x, x), host(x))


def test_semantic_layer_against_torch():
    layer, x, context = (
        redraw(SemanticEncoderLayer(8, 2, 16)),
        torch.randn(2, 3, 8),
        torch.randn(2, 7, 8),
    )
    other = nn.MultiheadAttention(8, 2, batch_first=True)
    other.in_proj_weight, other.in_proj_bias = layer.attn.qkv.weight, layer.attn.qkv.bias
    other.out_proj = layer.attn.proj
    keys = layer.ln1(context)
    y = x + other(layer.ln1(x), keys, keys)[0]
    torch.testing.assert_close(layer(x, context), layer.ffn(layer.ln2(y), identity=y))


@pytest.mark.parametrize('stgm_layers', [0, 1, 2, 3])
def test_semantic_tokens_against_the_equations(stgm_layers):
    options = {
        **TINY['STViT'],
        'out_type': 'raw',
        'out_indices': (0, 1, 2, 3),
        'stgm_layers': stgm_layers,
    }
    model = redraw(STViT(**options), 0.2)
    outs = model(torch.randn(2, 3, 64, 64))
    assert [out.shape[1] for out in outs] == [16, 4, 4, 4]
    x, layers = outs[0], model.layers
    pooled = model.pool(x, (4, 4))
    s = layers[1](pooled, x) if stgm_layers else layers[1](pooled)
    torch.testing.assert_close(outs[1], s)
    if stgm_layers < 2:
        assert model.global_tokens is None
        s = layers[2](s)
    else:
        s = layers[2](s + model.global_tokens, torch.cat((s, x), 1))
    torch.testing.assert_close(outs[2], s)
    s = layers[3](s, torch.cat((s, x), 1)) if stgm_layers == 3 else layers[3](s)
    torch.testing.assert_close(outs[3], model.ln1(s))


def test_output_types():
    options = {**TINY['STViT'], 'out_indices': -1}
    raw, maps, mean = (
        redraw(STViT(**{**options, 'out_type': t})) for t in ('raw', 'featmap', 'avg_featmap')
    )
    x = torch.randn(2, 3, 64, 80)
    tokens = raw(x)[0]  # (2, 4, 24)
    torch.testing.assert_close(maps(x)[0], tokens.transpose(1, 2).view(2, 24, 2, 2))
    torch.testing.assert_close(mean(x)[0], tokens.mean(1))
    assert len(list(mean.parameters())) == len(list(maps.parameters()))


def test_dropout_reaches_all_layers():
    layers = STViT(**TINY['STViT'], drop_rate=0.2, drop_path_rate=0.3).layers
    assert [layer.attn.proj_drop.p for layer in layers] == [0.2] * 4
    rates = [layer.attn.out_drop.drop_prob for layer in layers]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


def test_pooling_against_loops():
    x, size = torch.randn(2, 30, 8), (5, 6)
    grid = x.view(2, *size, 8)
    cells = [[slice(i * s // 2, -(-(i + 1) * s // 2)) for i in range(2)] for s in size]
    for mode, reduce in (('avg', torch.mean), ('max', torch.amax)):
        expected = torch.stack(
            [reduce(grid[:, a, b], (1, 2)) for a in cells[0] for b in cells[1]], 1
        )
        torch.testing.assert_close(SemanticPooling(8, 2, mode)(x, size), expected)
    pool = redraw(SemanticPooling(8, 2))
    mask = pool.mask(grid.permute(0, 3, 1, 2))
    assert mask.shape == (2, 1, 5, 6)
    masked = grid * mask.permute(0, 2, 3, 1)
    mean = torch.stack([masked[:, a, b].mean((1, 2)) for a in cells[0] for b in cells[1]], 1)
    offset = pool.offset(mean.transpose(1, 2).view(2, 8, 2, 2)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(pool(x, size), mean + offset)


def test_frozen_layers_of_stvit_include_what_they_use():
    model = STViT(**TINY['STViT'], frozen_stages=3)
    trained = {name.partition('.')[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {'layers', 'ln1'}
    model = STViT(**TINY['STViT'], frozen_stages=1)
    assert model.global_tokens.requires_grad and model.pool.mask[0].weight.requires_grad


def test_layer_depths_of_stvit():
    model = STViT(**TINY['STViT'])
    depth = model.get_layer_depth
    assert depth('pos_embed') == (0, 6) and depth('layers.1.ln1.weight')[0] == 2
    assert depth('pool.mask.0.weight')[0] == 2 and depth('global_tokens')[0] == 3
    assert depth('backbone.global_tokens', 'backbone.')[0] == 3 and depth('ln1.weight')[0] == 5


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'build, message',
    [
        (lambda: STViTRSwin('huge'), "arch 'huge' is unknown"),
        (lambda: STViTRSwin({**SWIN, 'depths': [2, 2, 8, 2]}), 'must be 6, 12, 18'),
        (lambda: STViTRSwin(dict(embed_dims=8)), 'embed_dims, depths, num_heads'),
        (lambda: STViTRSwin(SWIN, 'sparse'), "variant must be 'cls' or 'dense', got 'sparse'"),
        (lambda: STViTRSwin(SWIN, 'dense', use_global=True), 'use_global'),
        (lambda: STViTRSwin(SWIN, patch_size=8), "patch_size is of Swin's patch embedding"),
        (lambda: STViTRSwin(SWIN, pad_mask=True), "'exact', 'published' or False, got True"),
        (lambda: SemanticRecoveryBlock(8, 2, pad_mask='no'), "got 'no'"),
        (lambda: SemanticBlock(8, 3), 'num_heads=3'),
        (lambda: SemanticPooling(8, 2, 'min'), "got 'min'"),
        (lambda: STViT(base_layers=11), 'base_layers=11'),
        (lambda: STViT(base_layers=12, stgm_layers=0), 'stgm_layers=0'),
        (lambda: STViT(out_type='cls_token'), "got 'cls_token'"),
        (lambda: STViTSwin(base_blocks=5), 'base_blocks=5'),
    ],
)
def test_wrong_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_classifier_form_says_which_size_it_needs():
    model = STViTRSwin(SWIN, 'cls')
    with pytest.raises(ValueError, match="images of 224.*use variant='dense'"):
        model(torch.randn(1, 3, 256, 256))


# --- detectors and segmentors ---------------------------------------------------------------------------------------


def shrunk(name):
    """A shipped dense config with a tiny backbone and heads."""
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    DefaultScope.get_instance(name, scope_name=cfg.default_scope)
    model = cfg.model
    indices = model.backbone.out_indices
    model.backbone.update(arch=SWIN, init_cfg=None)
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


@pytest.mark.parametrize(
    'name', ['mask-rcnn_stvit-r-swin-small_fpn_1x_coco', 'retinanet_stvit-r-swin-small_fpn_1x_coco']
)
def test_detectors_train(name):
    from mmdet.testing import demo_mm_inputs

    model = MODELS.build(shrunk(name))
    inputs = demo_mm_inputs(
        1, [[3, 64, 96]], num_items=[2], num_classes=4, with_mask='mask' in name
    )
    data = model.data_preprocessor(inputs, training=True)
    losses = model(**data, mode='loss')
    total = sum(v if torch.is_tensor(v) else sum(v) for k, v in losses.items() if 'loss' in k)
    total.backward()
    assert torch.isfinite(total)
    assert all(p.grad is not None for p in model.backbone.parameters())


@pytest.mark.parametrize(
    'name',
    [
        'stvit-r-swin-small_upernet_8xb2-160k_ade20k-512x512',
        'stvit-r-swin-small_fpn_8xb4-40k_ade20k-512x512',
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


@pytest.mark.parametrize('size', ['tiny', 'small', 'base'])
def test_recipe_of_deit(size):
    """DeiT's, of which the host's configs have Swin's warm-up, clipping and sampler."""
    from mmengine.config import Config

    cfg = Config.fromfile(CONFIGS / f'stvit_deit-{size}_4xb256_in1k.py')
    warm_up, cosine = cfg.param_scheduler
    assert (warm_up.end, cosine.begin, cosine.eta_min) == (5, 5, 1e-5)
    assert cfg.optim_wrapper.clip_grad is None
    assert cfg.train_dataloader.sampler.type == 'RepeatAugSampler'
    assert cfg.optim_wrapper.optimizer.lr * 1e-3 == pytest.approx(1e-6)
    assert cfg.auto_scale_lr.base_batch_size == 1024 and cfg.train_cfg.max_epochs == 300


@pytest.mark.parametrize('size', ['small', 'base'])
def test_cascade_config_builds(size):
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    name = f'cascade-mask-rcnn_stvit-r-swin-{size}_fpn_4conv1fc-giou_amp-ms-crop-3x_coco'
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    DefaultScope.get_instance(name, scope_name='mmdet')
    linspace = functools.partial(torch.linspace, device='cpu')
    with torch.device('meta'), mock.patch('torch.linspace', linspace):
        model = MODELS.build(cfg.model)
    assert model.backbone.num_features == cfg.model.neck.in_channels
    assert cfg.model.backbone.pad_mask == 'published' and cfg.max_epochs == 36
