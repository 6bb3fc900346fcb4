"""KVT: the authors' numbers, exact selection, and stock models of three hosts with k-NN attention."""

import copy
import importlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.models.utils import MultiheadAttention
from tiny_classifiers import classification_runner
from tiny_classifiers import classifier as tiny_classifier
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from mmextra.backbones import kvt
from mmextra.backbones.kvt import (
    KNNAttentionHook,
    KNNDropout,
    KNNMultiheadAttention,
    KNNSoftmax,
    KNNVisionTransformer,
    apply_knn_attention,
    class_token_weights,
    distractor_mass,
    knn_attention,
    knn_softmax,
    num_kept,
)
from mmextra.backbones.token_labeling.lvvit import LVViTAttention
from mmextra.engine.checkpoint import load_official
from mmextra.registry import MODELS

CONFIGS = Path(__file__).parents[2] / 'configs/kvt'
ARCH = dict(embed_dims=24, num_layers=3, num_heads=3, feedforward_channels=48)
TINY = {
    'KNNMultiheadAttention': dict(embed_dims=24, num_heads=3, topk=5),
    'KNNVisionTransformer': dict(
        arch=ARCH, topk=7, img_size=32, patch_size=8, out_type='featmap', out_indices=(0, 1, 2)
    ),
    'KNNAttentionHook': dict(topk=5),
    'DistractorAttentionHook': {},
}


# --- the authors' numbers -------------------------------------------------------------------------------------------


def knn_layer(kwargs, **options):
    names = ('num_heads', 'qkv_bias', 'qk_scale', 'topk', 'attn_drop', 'proj_drop')
    upstream = dict(num_heads=8, qkv_bias=False, topk=100)  # the authors' defaults
    given = {**upstream, **kwargs, **options}
    return KNNMultiheadAttention(kwargs['dim'], **{n: given[n] for n in names if n in given})


@pytest.mark.golden('kvt', 'knn_attention*')
def test_knn_attention(case):
    x, kwargs = case.leaf('x'), case.meta['kwargs']
    layer = case.load(knn_layer(kwargs)).eval()
    y = layer(x)
    if 'w' in case.inputs:
        (y * case.inputs['w']).sum().backward()
    with torch.no_grad():
        y_full = case.load(knn_layer(kwargs, topk=x.shape[1])).eval()(x)
        y_one = case.load(knn_layer(kwargs, topk=1)).eval()(x)
    grads = {k: p.grad for k, p in layer.named_parameters()}
    case.check(dict(y=y, y_full=y_full, y_one=y_one), dict(grads, x=x.grad))


def classifier(kwargs, type='mmextra.KNNVisionTransformer'):
    dims, eps = (
        kwargs.get('embed_dim', 768),
        kwargs.get('norm_layer', 'eps=1e-5').partition('eps=')[2],
    )
    names = dict(img_size='img_size', patch_size='patch_size', in_channels='in_chans')
    names.update(qk_scale='qk_scale', topk='topk', drop_rate='drop_rate')
    options = {ours: kwargs[theirs] for ours, theirs in names.items() if theirs in kwargs}
    if type == 'VisionTransformer':
        options = {k: v for k, v in options.items() if k not in ('topk', 'qk_scale')}
    return MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(
                type=type,
                arch=dict(
                    embed_dims=dims,
                    num_layers=kwargs.get('depth', 12),
                    num_heads=kwargs.get('num_heads', 12),
                    feedforward_channels=int(dims * kwargs.get('mlp_ratio', 4)),
                ),
                qkv_bias=kwargs.get('qkv_bias', False),
                norm_cfg=dict(type='LN', eps=float(eps)),
                **options,
            ),
            head=dict(
                type='mmpretrain.VisionTransformerClsHead',
                num_classes=kwargs.get('num_classes', 1000),
                in_channels=dims,
                hidden_dim=kwargs.get('representation_size'),
            ),
        )
    )


@pytest.mark.golden('kvt', 'kvt_deit_tiny*')
def test_knn_vision_transformer(case):
    kwargs = case.meta['kwargs']
    model = case.load(classifier(kwargs), layout='kvt').eval()
    with torch.no_grad():
        feat = model.extract_feat(case.inputs['x'], stage='pre_logits')
        case.check(dict(feat=feat, logits=model(case.inputs['x'])))

    if not kwargs.get('qk_scale'):  # the host has no such option
        stock = classifier(kwargs, type='VisionTransformer')
        load_official(stock, case.state, 'kvt')
        apply_knn_attention(stock.eval(), kwargs.get('topk', 100))
        with torch.no_grad():
            case.check(dict(logits=stock(case.inputs['x'])), skip=('feat',))


@pytest.mark.parametrize(
    'size, params, macs',
    [('tiny', 5_717_416, 1.254e9), ('small', 22_050_664, 4.599e9), ('base', 86_567_656, 17.564e9)],
)
def test_size_and_cost(size, params, macs):
    with torch.device('meta'), FlopCounterMode(display=False) as counter, torch.no_grad():
        model = KNNVisionTransformer(f'deit-{size}').eval()
        head = nn.Linear(model.embed_dims, 1000)
        head(model(torch.empty(1, 3, 224, 224))[0])
    assert sum(p.numel() for part in (model, head) for p in part.parameters()) == params
    assert counter.get_total_flops() / 2 == pytest.approx(macs, rel=5e-3)


# --- selection ------------------------------------------------------------------------------------------------------


def slow_softmax(logits, kept):
    """Row by row: sort, keep, normalise."""
    out = torch.zeros_like(logits)
    for row, weights in zip(logits.flatten(0, -2), out.view(-1, logits.shape[-1])):
        chosen = sorted(range(len(row)), key=lambda j: -row[j])[:kept]
        weights[chosen] = row[chosen].exp() / row[chosen].exp().sum()
    return out


@pytest.mark.parametrize('exact_ties', [True, False])
@pytest.mark.parametrize('topk', [1, 3, 5, 6, 8, 0.5])
def test_softmax_is_that_of_a_slow_loop(topk, exact_ties):
    logits = torch.randn(2, 3, 4, 9, dtype=torch.double, requires_grad=True)
    kept = 5 if topk == 0.5 else topk
    weights = knn_softmax(logits, topk, exact_ties)
    torch.testing.assert_close(weights, slow_softmax(logits.detach(), kept))
    assert ((weights > 0).sum(-1) == kept).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert torch.autograd.gradcheck(lambda t: knn_softmax(t, topk, exact_ties), (logits,))


@pytest.mark.parametrize('inplace', [True, False])
def test_logits_are_overwritten_only_if_allowed(inplace):
    logits = torch.randn(3, 8)
    before = logits.clone()
    knn_softmax(logits, 3, inplace=inplace)
    assert torch.equal(logits, before) != inplace


def test_all_keys_is_dense_attention_and_one_key_its_value():
    q, k, v = torch.randn(3, 2, 3, 9, 8)
    dense = F.scaled_dot_product_attention(q, k, v)
    for topk in (9, 100, 1.0):
        torch.testing.assert_close(knn_attention(q, k, v, topk), dense, rtol=1e-5, atol=1e-5)
    nearest = (q @ k.mT).argmax(-1)[..., None].expand(-1, -1, -1, 8)
    torch.testing.assert_close(knn_attention(q, k, v, 1), v.gather(2, nearest))
    single = knn_attention(q, k[:, :, :1], v[:, :, :1], 5)  # one key: nothing to choose
    torch.testing.assert_close(single, v[:, :, :1].expand_as(single))


def test_keys_below_the_threshold_do_not_matter():
    q, k, v = (torch.randn(1, 1, 9, 8, requires_grad=True) for _ in range(3))
    out = knn_attention(q, k, v, 4)
    order = (q @ k.mT)[0, 0, 0].argsort(descending=True)
    (grad,) = torch.autograd.grad(out[0, 0, 0].sum(), k)
    touched = grad[0, 0].abs().sum(-1) > 0
    assert touched[order[:4]].all() and not touched[order[4:]].any()
    with torch.no_grad():
        moved, values = k.clone(), v.clone()
        moved[0, 0, order[-1]] *= 1.01
        values[0, 0, order[5]] += 1
        torch.testing.assert_close(knn_attention(q, moved, values, 4)[0, 0, 0], out[0, 0, 0])
        values[0, 0, order[3]] += 1
        assert not torch.allclose(knn_attention(q, moved, values, 4)[0, 0, 0], out[0, 0, 0])


@pytest.mark.parametrize('topk', [3, 7])
def test_ties(topk):
    weights = knn_softmax(torch.zeros(2, 5, 10), topk)
    assert ((weights > 0).sum(-1) == topk).all()
    torch.testing.assert_close(weights.amax(-1), torch.full((2, 5), 1 / topk))
    dense = knn_softmax(torch.zeros(2, 5, 10), topk, exact_ties=False)
    torch.testing.assert_close(dense, torch.full((2, 5, 10), 0.1))
    mixed = knn_softmax(torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]]), 2, exact_ties=False)
    assert (mixed > 0).tolist() == [[True, True, True, True, False]]


def test_ties_of_half_precision_are_those_of_its_softmax():
    logits = torch.randn(4, 64).bfloat16()
    weights = knn_softmax(logits, 20)
    assert weights.dtype == torch.bfloat16 and ((weights > 0).sum(-1) == 20).all()
    smallest_kept = logits.masked_fill(weights == 0, torch.inf).amin(-1)
    assert (logits.masked_fill(weights > 0, -torch.inf).amax(-1) <= smallest_kept).all()


@pytest.mark.parametrize('boolean', [True, False])
def test_masks_count_before_the_selection(boolean):
    q, k, v = torch.randn(3, 1, 2, 6, 8)
    allowed = torch.ones(6, 6, dtype=torch.bool)
    nearest = (q @ k.mT)[0, 0].argmax(-1)
    allowed[torch.arange(6), nearest] = False
    mask = allowed if boolean else torch.zeros(6, 6).masked_fill(~allowed, -100.0)
    logits = (q @ k.mT * 8**-0.5).masked_fill(~allowed, -100.0)
    expected = slow_softmax(logits, 3) @ v
    torch.testing.assert_close(knn_attention(q, k, v, 3, attn_mask=mask), expected)


def test_number_of_keys():
    assert [num_kept(t, 197) for t in (100, 300, 0.5, 0.001, 1.0, 1)] == [100, 197, 99, 1, 197, 1]
    assert num_kept(100, 49) == 49


@pytest.mark.parametrize('topk', [0, -1, 1.5, 0.0, True, '100', None])
def test_bad_topk(topk):
    for build in (
        lambda: KNNAttentionHook(topk),
        lambda: KNNVisionTransformer(ARCH, topk),
        lambda: KNNMultiheadAttention(24, 3, topk),
        lambda: apply_knn_attention(nn.MultiheadAttention(24, 3), topk),
    ):
        with pytest.raises((TypeError, ValueError), match='topk must be an? .* or a'):
            build()


def peak_bytes(function):
    """The most memory that a call allocates at one time."""
    function()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == '[memory]']
    peak = total = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


@pytest.mark.parametrize('topk', [100, 0.5])
@pytest.mark.parametrize('training', [True, False])
def test_memory(topk, training):
    q, k, v = (torch.randn(1, 1, 785, 16, requires_grad=training) for _ in range(3))

    def dense():
        return ((q * 0.25) @ k.mT).softmax(-1) @ v

    def knn():
        return knn_attention(q, k, v, topk)

    if training:
        peaks = [peak_bytes(lambda f=f: f().sum().backward()) for f in (dense, knn)]
    else:
        peaks = [peak_bytes(f) for f in (dense, knn)]
    assert peaks[0] >= 2 * 785 * 785 * 4  # two maps
    assert peaks[1] <= (1.05 if training else 1.3) * peaks[0]


def test_rows_are_not_sorted(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError('sorted')

    calls, topk = [], torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, 'sort', refuse)
    monkeypatch.setattr(torch.Tensor, 'argsort', refuse)
    monkeypatch.setattr(
        torch.Tensor,
        'topk',
        lambda x, k, *args, **kwargs: calls.append((k, kwargs)) or topk(x, k, *args, **kwargs),
    )
    for kept in (100, 20, 150):
        knn_softmax(torch.randn(1, 197), kept)
    assert [k for k, _ in calls] == [97, 20, 47]  # the smaller part
    assert all(options['sorted'] is False for _, options in calls)


# --- stock models ---------------------------------------------------------------------------------------------------

VIT = dict(img_size=32, patch_size=8)
SWIN = dict(embed_dims=12, depths=(2, 2), num_heads=(2, 2), window_size=4)
TWINS = dict(
    arch=dict(
        embed_dims=(12, 24, 24, 24),
        depths=(2, 1, 1, 2),
        num_heads=(2, 2, 2, 2),
        patch_sizes=(4, 2, 2, 2),
        strides=(4, 2, 2, 2),
        mlp_ratios=(2, 2, 2, 2),
    )
)
HOSTS = {
    'vit': dict(type='mmpretrain.VisionTransformer', arch=ARCH, **VIT),
    'distilled': dict(type='mmpretrain.DistilledVisionTransformer', arch=ARCH, **VIT),
    't2t': dict(
        type='mmpretrain.T2T_ViT',
        img_size=64,
        embed_dims=24,
        num_layers=2,
        t2t_cfg=dict(token_dims=8),
        layer_cfgs=dict(num_heads=3, feedforward_channels=24),
    ),
    'tnt': dict(
        type='mmpretrain.TNT',
        arch=dict(
            embed_dims_outer=24,
            embed_dims_inner=8,
            num_layers=2,
            num_heads_outer=3,
            num_heads_inner=2,
        ),
        img_size=32,
        patch_size=8,
    ),
    'swin': dict(
        type='mmpretrain.SwinTransformer',
        arch=dict(embed_dims=12, depths=[2, 2], num_heads=[2, 2]),
        window_size=4,
        img_size=32,
        out_indices=(1,),
    ),
    'swin_v2': dict(
        type='mmpretrain.SwinTransformerV2',
        arch=dict(embed_dims=12, depths=[2, 2], num_heads=[2, 2], extra_norm_every_n_blocks=0),
        window_size=4,
        img_size=32,
        out_indices=(1,),
    ),
    'beit': dict(
        type='mmpretrain.BEiTViT',
        arch=ARCH,
        out_type='raw',
        **VIT,
    ),
    'pcpvt': dict(
        type='mmpretrain.PCPVT',
        arch=dict(
            embed_dims=[12, 24],
            depths=[1, 2],
            num_heads=[2, 2],
            patch_sizes=[4, 2],
            strides=[4, 2],
            mlp_ratios=[2, 2],
            sr_ratios=[2, 1],
        ),
        out_indices=(1,),
    ),
    'svt': dict(
        type='mmpretrain.SVT',
        arch=dict(
            embed_dims=[12, 24],
            depths=[2, 2],
            num_heads=[2, 2],
            patch_sizes=[4, 2],
            strides=[4, 2],
            mlp_ratios=[2, 2],
            sr_ratios=[2, 1],
            window_sizes=[4, 2],
        ),
        out_indices=(1,),
    ),
    'mmseg_vit': dict(
        type='mmseg.VisionTransformer',
        img_size=32,
        patch_size=8,
        embed_dims=24,
        num_layers=2,
        num_heads=3,
        mlp_ratio=2,
        out_indices=1,
    ),
    'mmseg_swin': dict(
        type='mmseg.SwinTransformer', pretrain_img_size=32, out_indices=(1,), strides=(4, 2), **SWIN
    ),
    'mmseg_mit': dict(
        type='mmseg.MixVisionTransformer',
        embed_dims=12,
        num_stages=2,
        num_layers=[1, 1],
        num_heads=[2, 2],
        patch_sizes=[7, 3],
        strides=[4, 2],
        sr_ratios=[2, 1],
        out_indices=(1,),
    ),
    'mmdet_swin': dict(
        type='mmdet.SwinTransformer', pretrain_img_size=32, out_indices=(1,), strides=(4, 2), **SWIN
    ),
    'mmdet_pvt': dict(
        type='mmdet.PyramidVisionTransformer',
        pretrain_img_size=32,
        embed_dims=12,
        num_stages=2,
        num_layers=[1, 1],
        num_heads=[2, 2],
        patch_sizes=[4, 2],
        strides=[4, 2],
        paddings=[0, 0],
        sr_ratios=[2, 1],
        mlp_ratios=[2, 2],
        out_indices=(1,),
    ),
    'volo': dict(
        type='mmextra.VOLO',
        arch=dict(layers=(1, 1, 1, 1), embed_dims=(16, 24, 24, 24), num_heads=(2, 3, 3, 3)),
        img_size=64,
    ),
    'lvvit': dict(type='mmextra.LVViT', arch=dict(embed_dims=24, num_layers=2, num_heads=3), **VIT),
}
CORES = dict(vit=3, distilled=3, t2t=4, tnt=4, swin=4, swin_v2=4, beit=3, pcpvt=3, svt=4)
CORES.update(mmseg_vit=2, mmseg_swin=4, mmseg_mit=2, mmdet_swin=4, mmdet_pvt=2, lvvit=2, volo=5)


def host(name):
    scope = HOSTS[name]['type'].partition('.')[0]
    importlib.import_module(f'{scope}.models' if scope != 'mmextra' else 'mmextra.registry')
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(HOSTS[name]))
    for parameter in model.parameters():  # so that queries and keys matter
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    model.eval()  # which returns None in some hosts
    return model


def flat(outs):
    """All tensors of an output in one row."""
    if isinstance(outs, torch.Tensor):
        return outs.flatten()
    return torch.cat([flat(out) for out in outs])


@pytest.mark.parametrize('name', list(HOSTS))
def test_stock_backbone(name):
    """Names, number and values of the parameters stay; all keys give what the host gives, fewer something else."""
    model = host(name)
    size = HOSTS[name].get('img_size', 32)
    x = torch.randn(2, 3, size, size)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        stock = flat(model(x))
        changed = apply_knn_attention(model, topk=10_000)
        dense = flat(model(x))
        assert apply_knn_attention(model, topk=2) == changed  # again, with another number
        sparse = flat(model(x))
    assert len(changed) == CORES[name]
    torch.testing.assert_close(dense, stock, rtol=1e-3, atol=1e-4 * stock.abs().max().item())
    assert (sparse - stock).abs().max() > 1e-2 * stock.abs().max() and sparse.isfinite().all()
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        torch.testing.assert_close(flat(twin(x)), sparse)


@pytest.mark.parametrize('name', ['vit', 'swin', 'svt', 'mmseg_vit', 'lvvit'])
def test_stock_backbone_trains(name):
    model = host(name)
    apply_knn_attention(model, topk=0.5)
    model.train()
    flat(model(torch.randn(2, 3, 32, 32))).square().mean().backward()
    grads = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    assert all(g.isfinite().all() for g in grads.values())
    assert any('qkv' in k or 'in_proj' in k for k in grads)


@pytest.mark.parametrize(
    'name, arch', [('VisionTransformer', 'deit-tiny'), ('SwinTransformer', 'tiny')]
)
def test_twelve_layers_of_the_published_models(name, arch):
    model = MODELS.build(dict(type=f'mmpretrain.{name}', arch=arch))
    before = {k: v.shape for k, v in model.state_dict().items()}
    assert len(apply_knn_attention(model)) == 12
    assert {k: v.shape for k, v in model.state_dict().items()} == before


def test_masks_of_shifted_windows_come_first():
    """Swin adds -100 between parts of a window that are no neighbours; none of those is kept instead of a neighbour."""
    model, seen = host('swin'), []
    apply_knn_attention(model, topk=4)
    softmax = model.stages[0].blocks[1].attn.w_msa.softmax
    softmax.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].clone()))
    softmax.register_forward_hook(lambda m, inputs, weights: seen.append(weights))
    model(torch.randn(1, 3, 32, 32))
    logits, weights = seen
    masked = logits < -50
    assert masked.any() and not weights[masked].any()
    torch.testing.assert_close(weights, slow_softmax(logits.detach(), 4))


def test_weights_of_a_dense_softmax():
    logits = torch.randn(2, 3, 5, 9, requires_grad=True)
    ours = KNNDropout(0.0, 4)(logits.softmax(-1))
    expected = knn_softmax(logits, 4)
    torch.testing.assert_close(ours, expected)
    out = torch.randn_like(ours)
    grads = [torch.autograd.grad(w, logits, out)[0] for w in (ours, expected)]
    torch.testing.assert_close(*grads)
    dropped = KNNDropout(0.5, 4).train()(logits.softmax(-1))
    assert ((dropped == 0) | torch.isclose(dropped, 2 * expected)).all()
    torch.testing.assert_close(KNNSoftmax(4)(logits.detach().clone()), expected.detach())


@pytest.mark.parametrize('batch_first', [True, False])
@pytest.mark.parametrize('options', [{}, dict(kdim=10, vdim=6), dict(bias=False)])
def test_torch_attention_with_masks(options, batch_first):
    """The host of DETR-like transformers: cross attention, padding and pairwise masks."""
    layer = nn.MultiheadAttention(12, 3, batch_first=batch_first, **options).eval()
    query, key, value = (
        torch.randn(2, n, c) for n, c in ((5, 12), (7, layer.kdim), (7, layer.vdim))
    )
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 4:] = True
    forbidden = torch.rand(6, 5, 7) < 0.2
    forbidden[..., 0] = False

    def attend(module, *inputs, **masks):
        inputs = inputs if batch_first else [t.transpose(0, 1) for t in inputs]
        out = module(*inputs, **masks)[0]
        return out if batch_first else out.transpose(0, 1)

    for masks in (
        {},
        dict(key_padding_mask=padding),
        dict(attn_mask=forbidden, key_padding_mask=padding),
        dict(attn_mask=torch.randn(5, 7)),
    ):
        knn = copy.deepcopy(layer)
        apply_knn_attention(knn, topk=7)
        expected = attend(layer, query, key, value, **masks)
        torch.testing.assert_close(
            attend(knn, query, key, value, **masks), expected, rtol=1e-4, atol=1e-5
        )
    apply_knn_attention(knn, topk=3)
    few = attend(knn, query, key, value, key_padding_mask=padding)
    other = value.clone()
    other[1, 4:] += 100  # padded keys are never among the three
    torch.testing.assert_close(attend(knn, query, key, other, key_padding_mask=padding), few)


def test_torch_encoder_does_not_go_past_its_attention():
    """torch has a kernel for testing that reads the weights of the layer and never calls its attention."""
    layer = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True)
    encoder, x = nn.TransformerEncoder(layer, 2), torch.randn(2, 9, 12)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1, 5:] = True
    assert len(apply_knn_attention(encoder, topk=3)) == 2
    for masks in ({}, dict(src_key_padding_mask=padding)):
        expected = encoder.train()(x, **masks)
        with torch.no_grad():
            out = encoder.eval()(x, **masks)
        torch.testing.assert_close(out[~padding], expected[~padding])


def test_attention_that_cannot_be_changed():
    for options in (dict(add_bias_kv=True), dict(add_zero_attn=True)):
        with pytest.raises(ValueError, match='neither add_bias_kv nor add_zero_attn'):
            apply_knn_attention(nn.MultiheadAttention(12, 3, **options))
    q = torch.randn(1, 1, 3, 4)
    layer = KNNMultiheadAttention(24, 3)
    with pytest.raises(ValueError, match='neither is_causal nor enable_gqa'):
        layer.scaled_dot_product_attention(q, q, q, is_causal=True)


@pytest.mark.parametrize(
    'name, options',
    [
        ('XCiT', dict(embed_dims=24, depth=1, num_heads=2)),
        ('LeViT', dict(arch='128s')),
        ('LeNet5', {}),
    ],
)
def test_unsupported_models(name, options):
    model = MODELS.build(dict(type=f'mmpretrain.{name}', **options))
    message = f'{name} has no attention of the classes MultiheadAttention.*XCiT.*not supported'
    with pytest.raises(ValueError, match=message):
        apply_knn_attention(model)


def test_named_module_that_computes_no_attention():
    model = host('vit')
    with pytest.raises(ValueError, match=r'FFN \(layers.0.ffn\) cannot have k-NN attention'):
        apply_knn_attention(model, modules=['FFN'])

    class Silent(nn.Module):
        attn_drop = 0.0

        def forward(self, x):
            return x

    apply_knn_attention(model := Silent(), modules=['Silent'])
    with pytest.raises(RuntimeError, match='Silent did not call F.scaled_dot_product_attention'):
        model(torch.zeros(1))


def test_redirected_attention_compiles():
    """LV-ViT and VOLO call the dense function by themselves."""
    layer = next(m for m in host('lvvit').modules() if isinstance(m, LVViTAttention))
    x = torch.randn(2, 5, 24)
    apply_knn_attention(layer, topk=2)
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(layer, backend='eager')(x), layer(x))


def test_excluded_modules():
    model = host('vit')
    changed = apply_knn_attention(model, exclude=r'layers\.[01]\.')
    assert changed == ['layers.2.attn']
    with pytest.raises(ValueError, match='that is not excluded'):
        apply_knn_attention(host('vit'), exclude=['layers', 'nothing'])


def test_layer_cfgs_reach_the_layers():
    model = KNNVisionTransformer(
        ARCH, img_size=32, patch_size=8, layer_cfgs=dict(layer_scale_init_value=0.1), qk_scale=0.3
    )
    assert hasattr(model.layers[0].attn.gamma1, 'weight')
    assert all(m.attn.scaled_dot_product_attention.scale == 0.3 for m in model.layers)
    x = torch.randn(2, 17, 24)
    q, k, v = model.layers[0].attn.qkv(x).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v, scale=0.3)
    core = model.layers[0].attn.scaled_dot_product_attention
    torch.testing.assert_close(core(q, k, v), expected, rtol=1e-4, atol=1e-5)


# --- the hook -------------------------------------------------------------------------------------------------------


def run_config(**hook):
    return Config(
        dict(
            model=tiny_classifier(dict(type='VisionTransformer', arch=ARCH, **VIT)),
            custom_hooks=[dict(type='mmextra.KNNAttentionHook', **hook)],
        )
    )


def test_hook_in_training_and_testing(tmp_path, monkeypatch):
    """Train, then test with another ``topk`` from the command line; EMA goes along; the checkpoint is the host's."""
    messages = []
    monkeypatch.setattr(kvt, 'print_log', lambda message, logger: messages.append(message))
    cfg = run_config(topk=5)
    runner = classification_runner(
        cfg.model, tmp_path, [*cfg.custom_hooks, dict(type='EMAHook')], log_level='INFO'
    )
    runner.train()
    core = runner.model.backbone.layers[0].attn.scaled_dot_product_attention
    assert core.topk == 5
    assert any('KNNAttentionHook: 3 attention modules now keep topk=5' in m for m in messages)
    (averaged,) = (h.ema_model.module for h in runner.hooks if type(h).__name__ == 'EMAHook')
    assert averaged.backbone.layers[0].attn.scaled_dot_product_attention.topk == 5
    stock = MODELS.build(cfg.model)
    saved = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)['state_dict']
    stock.load_state_dict(saved)

    cfg.merge_from_dict({'custom_hooks.0.topk': 3})
    tester = classification_runner(
        cfg.model, tmp_path / 'test', cfg.custom_hooks, load_from=str(tmp_path / 'epoch_2.pth')
    )
    tester.test()
    assert tester.model.backbone.layers[0].attn.scaled_dot_product_attention.topk == 3
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        dense = stock.eval()(x)
        apply_knn_attention(stock, 3)
        torch.testing.assert_close(tester.model.eval()(x), stock(x))
        assert not torch.equal(stock(x), dense)


# --- attention to clutter -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('topk', [None, 3, 17])
def test_weights_of_the_class_token(topk):
    layer, x = MultiheadAttention(24, 3, qkv_bias=True), torch.randn(2, 17, 24)
    if topk:
        apply_knn_attention(layer, topk)
    with torch.no_grad():
        weights = class_token_weights(layer, x)
        q, k, _ = layer.qkv(x).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
        logits = (q[:, :, :1] @ k.mT) * 8**-0.5
        expected = slow_softmax(logits, topk or 17)[:, :, 0]
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)
    assert weights.shape == (2, 3, 17)


def test_mass_of_distractors_equals_loops():
    weights = torch.rand(2, 3, 2, 17).softmax(-1)  # two layers, three images, two heads
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0, 2:4, 6:8] = True  # one patch
    masks[1, 3:5, 0] = True  # a part of two
    expected = torch.zeros(2, 3)
    for layer in range(2):
        for image in range(3):
            for head in range(2):
                for n in range(16):
                    row, column = 2 * (n // 4), 2 * (n % 4)
                    if not masks[image, row : row + 2, column : column + 2].any():
                        expected[layer, image] += weights[layer, image, head, 1 + n] / 2
    torch.testing.assert_close(distractor_mass(weights, masks), expected)
    assert (expected > 0).all() and (expected < 1).all()
    with pytest.raises(ValueError, match='weights of 16 tokens'):
        distractor_mass(weights[..., 1:], masks)


def with_masks(runner):
    """Give the images of a validation masks: the object is in the upper half."""
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:16] = True
    for sample in runner.val_dataloader.dataset:
        sample['data_samples'].set_field(mask.numpy(), 'object_mask')
    return mask


@pytest.mark.parametrize('topk', [3, 17])
def test_hook_logs_the_attention_to_distractors(topk, tmp_path):
    cfg = run_config(topk=topk)
    hooks = [*cfg.custom_hooks, dict(type='mmextra.DistractorAttentionHook')]
    runner = classification_runner(cfg.model, tmp_path, hooks)
    mask = with_masks(runner)
    runner.train()
    scalars = runner.message_hub.log_scalars
    mean, last = (scalars[f'val/distractor_mass{k}'].current() for k in ('', '_last'))
    assert len(scalars['val/distractor_mass'].data[0]) == 2
    assert not any(m._forward_hooks for m in runner.model.backbone.layers.modules())

    masses, layers = [], runner.model.eval().backbone.layers
    for layer in layers:
        layer.attn.register_forward_pre_hook(
            lambda m, inputs: masses.append(
                class_token_weights(m, inputs[0])[..., 9:].sum(-1).mean(-1)
            )
        )
    with torch.no_grad():
        for batch in runner.val_dataloader:
            runner.model.test_step(batch)
    masses = torch.cat([torch.stack(masses[:3]), torch.stack(masses[3:])], 1).mean(1)
    assert not mask[16:].any() and masses.shape == (3,)
    assert mean == pytest.approx(masses.mean().item(), abs=1e-5)
    assert last == pytest.approx(masses[-1].item(), abs=1e-5)


def test_hook_for_distractors_names_what_is_absent(tmp_path):
    hooks = [dict(type='mmextra.DistractorAttentionHook')]
    runner = classification_runner(run_config(topk=3).model, tmp_path / 'vit', hooks)
    with pytest.raises(ValueError, match='needs an object_mask in every data sample'):
        runner.val()
    model = tiny_classifier(dict(type='ResNet', depth=18), in_channels=512)
    runner = classification_runner(model, tmp_path / 'resnet', hooks)
    with pytest.raises(ValueError, match='ImageClassifier has no MultiheadAttention'):
        runner.val()


@pytest.mark.parametrize('name', ['tiny_4xb256', 'small_4xb256', 'base_16xb64'])
def test_recipe_of_deit(name):
    cfg = Config.fromfile(CONFIGS / f'kvt_deit-{name}_in1k.py')
    machines, batch = (int(n) for n in name.partition('_')[2].split('xb'))
    assert machines * batch == 1024 and cfg.train_dataloader.batch_size == batch
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-3, 0.05)
    assert cfg.optim_wrapper.get('clip_grad') is None
    warmup, cosine = cfg.param_scheduler
    assert (warmup.start_factor * optimizer.lr, warmup.end) == (pytest.approx(1e-6), 5)
    assert (cosine.begin, cosine.end, cosine.eta_min) == (5, 300, 1e-5)
    assert cfg.train_cfg.max_epochs == 310 and cfg.model.backbone.drop_path_rate == 0.1
    assert [(a.type, a.alpha) for a in cfg.model.train_cfg.augments] == [
        ('Mixup', 0.8),
        ('CutMix', 1.0),
    ]
    assert cfg.model.head.loss.label_smooth_val == 0.1
    erasing = [t for t in cfg.train_dataloader.dataset.pipeline if t.type == 'RandomErasing']
    assert [t.erase_prob for t in erasing] == [0.25]
    assert cfg.train_dataloader.sampler.type == 'RepeatAugSampler'
    knn, ema = cfg.custom_hooks
    assert knn.topk == 100 and ema.momentum == pytest.approx(1 - 0.99996)


def test_recipe_of_tnt():
    """That of DeiT, on images of mean and standard deviation 0.5."""
    cfg = Config.fromfile(CONFIGS / 'kvt_tnt-s-p16_16xb64_in1k.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-3, 0.05)
    assert cfg.optim_wrapper.clip_grad is None and cfg.data_preprocessor.mean == [127.5] * 3
    warmup, cosine = cfg.param_scheduler
    assert (warmup.end, cosine.begin, cosine.eta_min, cfg.train_cfg.max_epochs) == (5, 5, 1e-5, 300)
    assert [a.type for a in cfg.model.train_cfg.augments] == ['Mixup', 'CutMix']
    loader = cfg.train_dataloader
    assert (loader.batch_size, loader.sampler.type) == (64, 'RepeatAugSampler')
    assert {'RandAugment', 'RandomErasing'} <= {t.type for t in loader.dataset.pipeline}
    knn, ema = cfg.custom_hooks
    assert knn.topk == 100 and ema.momentum == pytest.approx(1 - 0.99996)
    parameters = dict(MODELS.build(cfg.model).named_parameters())
    for key in cfg.optim_wrapper.paramwise_cfg.custom_keys:
        host = key in ('.absolute_pos_embed', '.relative_position_bias_table')  # Swin's
        assert host or any(key in name for name in parameters)


def test_detector_trains_a_step():
    pytest.importorskip('mmdet.models')
    from mmdet.testing import demo_mm_inputs

    cfg = Config.fromfile(CONFIGS / 'kvt_retinanet_pvt-t_fpn_1x_coco.py')
    cfg.model.backbone.pop('init_cfg', None)
    cfg.model._scope_ = 'mmdet'
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model).train()
    options = {k: v for k, v in cfg.custom_hooks[0].items() if k != 'type'}
    assert len(apply_knn_attention(model, **options)) == 8
    batch = demo_mm_inputs(1, [[3, 64, 64]])
    losses, _ = model.parse_losses(model(**model.data_preprocessor(batch, True), mode='loss'))
    losses.backward()
    grads = [p.grad for p in model.backbone.parameters() if p.grad is not None]
    assert losses.isfinite() and grads and all(g.isfinite().all() for g in grads)
