"""DeepViT: the authors' numbers, re-attention against a slow loop, and what its heads and norm promise."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from tiny_classifiers import classification_runner
from tiny_classifiers import classifier as tiny_classifier
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmextra.backbones.deepvit import (
    AttentionSimilarityHook,
    DeepViT,
    ReAttention,
    attention_similarity,
    stock_attention_map,
)
from mmextra.backbones.plain_vit import ConvStem
from mmextra.backbones.refiner import AttnCosRegLoss
from mmextra.backbones.token_labeling import SoftTargetCrossEntropy
from mmextra.registry import MODELS

ARCH = dict(
    embed_dims=24,
    num_layers=3,
    num_heads=4,
    feedforward_channels=48,
    transform_mask=[False, True, True],
    residual_scale=0.5,
    transform_scale=True,
    stem='conv2',
)
TINY = {
    'ReAttention': dict(embed_dims=24, num_heads=4),
    'DeepViT': dict(
        arch=ARCH, img_size=32, patch_size=8, out_type='featmap', out_indices=(0, 1, 2)
    ),
    'AttentionSimilarityHook': dict(interval=1),
}


def attention(**options):
    torch.manual_seed(0)
    layer = ReAttention(**{**TINY['ReAttention'], **options})
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    if layer.apply_transform:
        layer.var_norm.running_mean.normal_()
        layer.var_norm.running_var.uniform_(0.5, 1.5)
    return layer


def plain_maps(layer, x):
    """Maps and values, written out."""
    q, k, v = layer.qkv(x).chunk(3, dim=-1)
    heads = [t.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for t in (q, k, v)]
    logits = torch.einsum('bhid,bhjd->bhij', heads[0], heads[1]) * layer.scale
    return logits.softmax(-1), heads[2]


def reference(layer, x):
    """The two extra kernels of the paper: convolution and batch norm over the maps."""
    attn, v = plain_maps(layer, x)
    attn = layer.reatten_scale * layer.var_norm(layer.reatten_matrix(attn))
    return layer.proj((attn @ v).transpose(1, 2).flatten(2)), attn


# --- the authors' numbers -------------------------------------------------------------------------------------------


def attention_options(kwargs):
    names = dict(
        num_heads='num_heads',
        qkv_bias='qkv_bias',
        qk_scale='qk_scale',
        attn_drop='attn_drop',
        proj_drop='proj_drop',
        apply_transform='apply_transform',
        transform_scale='transform_scale',
    )
    upstream = dict(qkv_bias=False, num_heads=8)  # the authors' defaults, where they differ
    given = {**upstream, **kwargs}
    return dict(embed_dims=kwargs['dim'], **{n: given[k] for k, n in names.items() if k in given})


@pytest.mark.golden('deepvit', 're_attention*')
def test_re_attention(case):
    layer = case.load(ReAttention(**attention_options(case.meta['kwargs'])))
    x = case.leaf('x')
    y, attn = layer.eval()(x, need_map=True)
    (y * case.inputs['w']).sum().backward()
    y_train, attn_train = layer.train()(case.inputs['x'], need_map=True)
    case.check(dict(y=y, attn=attn, y_train=y_train, attn_train=attn_train))


def classifier(kwargs, **backbone):
    depth = len(kwargs['depth']) if isinstance(kwargs['depth'], list) else kwargs['depth']
    dims = kwargs.get('embed_dim', 768)
    re_atten = kwargs.get('re_atten', True)
    mask = kwargs.get('apply_transform') or [False] * depth
    eps = kwargs.get('norm_layer', 'eps=1e-5').partition('eps=')[2]
    arch = dict(
        embed_dims=dims,
        num_layers=depth,
        num_heads=kwargs.get('num_heads', 12),
        feedforward_channels=int(dims * kwargs.get('mlp_ratio', 4)),
        transform_mask=[re_atten and applied for applied in mask],
        residual_scale=kwargs.get('scale_adjustment', 1.0) if re_atten else 1.0,
        transform_scale=kwargs.get('transform_scale', False),
        stem='conv2' if kwargs.get('use_cnn_embed', False) else 'patch',
    )
    names = dict(
        img_size='img_size',
        patch_size='patch_size',
        in_channels='in_chans',
        qk_scale='qk_scale',
        drop_rate='drop_rate',
        attn_drop_rate='attn_drop_rate',
        drop_path_rate='drop_path_rate',
    )
    options = {ours: kwargs[theirs] for ours, theirs in names.items() if theirs in kwargs}
    return MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(
                type='mmextra.DeepViT',
                arch=arch,
                qkv_bias=kwargs.get('qkv_bias', False),
                norm_cfg=dict(type='LN', eps=float(eps)),
                **options,
                **backbone,
            ),
            head=dict(
                type='mmpretrain.VisionTransformerClsHead',
                num_classes=kwargs.get('num_classes', 1000),
                in_channels=dims,
            ),
        )
    )


@pytest.mark.golden('deepvit', 'deepvit_*')
def test_deepvit(case):
    model = case.load(classifier(case.meta['kwargs']), layout='deepvit').eval()
    seen = {}
    model.backbone.patch_embed.register_forward_hook(lambda m, i, o: seen.update(patch=o[0]))
    for index, layer in enumerate(model.backbone.layers):
        layer.register_forward_hook(lambda m, i, o, n=index: seen.update({f'block_{n}': o[0]}))
    with torch.no_grad():
        (seen['feat'],) = model.extract_feat(case.inputs['x'])
        seen['logits'] = model(case.inputs['x'])
    case.check(seen)


@pytest.mark.golden('deepvit', 'cos_reg_loss*')
def test_cosine_regulariser(case):
    num_pairs = case.meta['kwargs'].get('n_comn', 12)
    maps = [case.leaf(f'attn_{i}') for i in range(sum('attn' in k for k in case.inputs))]
    loss = SoftTargetCrossEntropy()(case.leaf('logits'), case.inputs['target'])
    loss = loss + AttnCosRegLoss(num_pairs=num_pairs)(maps)
    loss.backward()
    case.check(dict(loss=loss))


@pytest.mark.parametrize(
    'arch, img_size, params, macs',
    [
        ('16b', 224, 24_426_664, 5.27e9),
        ('24b', 224, 36_261_448, 7.88e9),
        ('32b', 224, 48_096_232, 10.49e9),
        ('s', 224, 27_312_632, 6.36e9),
        ('l', 224, 58_883_708, 13.15e9),
        ('l', 384, 59_043_308, 44.79e9),
    ],
)
def test_size_and_cost(arch, img_size, params, macs):
    with torch.device('meta'), FlopCounterMode(display=False) as counter, torch.no_grad():
        model = nn.Sequential(DeepViT(arch, img_size), nn.Linear(1, 1)).eval()
        model[1] = nn.Linear(model[0].embed_dims, 1000)
        model[1](model[0](torch.empty(1, 3, img_size, img_size))[0])
    assert sum(p.numel() for p in model.parameters()) == params
    assert counter.get_total_flops() / 2 == pytest.approx(macs, rel=5e-3)


def test_re_attention_adds_few_parameters():
    sizes = [
        sum(p.numel() for p in ReAttention(384, 12, apply_transform=t).parameters())
        for t in (True, False)
    ]
    assert sizes[0] - sizes[1] == 12 * 12 + 12 + 2 * 12 == 180


# --- re-attention ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize(
    'options', [{}, dict(transform_scale=True), dict(qk_scale=0.7, transform_scale=True)]
)
def test_equals_convolution_and_batch_norm(options, training):
    """Outputs, maps, all gradients and running statistics, although neither layer is ever run."""
    ours, plain = attention(**options).train(training), attention(**options).train(training)
    x = torch.randn(3, 7, 24)
    results = []
    for layer, forward in (
        (ours, lambda t: ours(t, need_map=True)),
        (plain, lambda t: reference(plain, t)),
    ):
        leaf = x.clone().requires_grad_()
        y, attn = forward(leaf)
        (y.square().sum() + attn.sin().sum()).backward()
        grads = {k: p.grad for k, p in layer.named_parameters()}
        if training:  # the norm takes the mean away again
            of_weight = grads['reatten_matrix.weight'].abs().max()
            assert grads.pop('reatten_matrix.bias').abs().max() < 1e-5 * of_weight
        results.append((y, attn, leaf.grad, grads, dict(layer.named_buffers())))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_batch_statistics_are_those_of_two_passes():
    """The variance from second moments, in double precision and with hardly any spread in the maps."""
    layer = attention().double().train()
    x = 1e-3 * torch.randn(2, 9, 24, dtype=torch.double)
    y, attn = layer(x, need_map=True)
    expected = reference(copy.deepcopy(layer), x)
    torch.testing.assert_close(y, expected[0], rtol=1e-3, atol=1e-5)
    single = attention().train()
    torch.testing.assert_close(single(x.float())[0], y.float(), rtol=1e-3, atol=1e-4)


def test_identity_is_plain_attention():
    layer = attention().eval()
    nn.init.dirac_(layer.reatten_matrix.weight)
    nn.init.zeros_(layer.reatten_matrix.bias)
    layer.var_norm.reset_parameters()
    layer.var_norm.running_var.fill_(1 - layer.var_norm.eps)
    x = torch.randn(2, 9, 24)
    plain = ReAttention(24, 4, apply_transform=False).eval()
    plain.load_state_dict(layer.state_dict(), strict=False)
    torch.testing.assert_close(layer(x)[0], plain(x)[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(x, need_map=True)[1], plain(x, need_map=True)[1])


def test_order_of_the_heads_does_not_matter():
    layer, permuted = attention().eval(), attention().eval()
    order = torch.tensor([2, 0, 3, 1])
    channels = torch.arange(24).view(4, 6)[order].flatten()
    with torch.no_grad():
        for part in ('weight', 'bias'):
            new, old = getattr(permuted.qkv, part), getattr(layer.qkv, part)
            new.copy_(torch.cat([third[channels] for third in old.chunk(3)]))
        permuted.proj.weight.copy_(layer.proj.weight[:, channels])
        permuted.reatten_matrix.weight.copy_(layer.reatten_matrix.weight[order][:, order])
        permuted.reatten_matrix.bias.copy_(layer.reatten_matrix.bias[order])
        for k, v in permuted.var_norm.state_dict().items():
            v.copy_(getattr(layer.var_norm, k)[order] if v.ndim else v)
    x = torch.randn(2, 9, 24)
    torch.testing.assert_close(permuted(x)[0], layer(x)[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(permuted(x)[0], layer(x[:, :, channels])[0], atol=1e-2)


@pytest.mark.parametrize('transform_scale', [False, True])
def test_maps_of_a_head_have_the_moments_of_its_norm(transform_scale):
    layer = attention(transform_scale=transform_scale).train()
    attn = layer(torch.randn(4, 11, 24), need_map=True)[1].transpose(0, 1).flatten(1)
    scale, norm = layer.reatten_scale, layer.var_norm
    assert scale == (pytest.approx(6**-0.5) if transform_scale else 1)
    torch.testing.assert_close(attn.mean(1), scale * norm.bias, rtol=1e-3, atol=1e-4)
    expected = (scale * norm.weight).square()
    torch.testing.assert_close(attn.var(1, correction=0), expected, rtol=0.02, atol=1e-4)


def test_shift_of_the_norm_is_a_rank_one_term():
    layer = attention().eval()
    x = torch.randn(2, 9, 24)
    attn, v = plain_maps(layer, x)
    norm = layer.var_norm
    s = norm.weight / (norm.running_var + norm.eps).sqrt()
    t = norm.bias + s * (layer.reatten_matrix.bias - norm.running_mean)
    mixed = torch.einsum('hg,bgij->bhij', layer.reatten_matrix.weight[:, :, 0, 0], attn)
    out = s[:, None, None] * (mixed @ v) + t[:, None, None] * v.sum(2, keepdim=True)
    expected = layer.proj(out.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-4, atol=1e-5)


def test_synchronised_norm_is_used_as_it_is():
    """Conversion to SyncBatchNorm catches the norm, and what it is converted to computes the statistics."""
    assert isinstance(
        nn.SyncBatchNorm.convert_sync_batchnorm(attention()).var_norm, nn.SyncBatchNorm
    )

    class OtherNorm(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) + 1

    layer, other = attention().eval(), attention().eval()
    other.var_norm.__class__ = OtherNorm
    x = torch.randn(2, 9, 24)
    shifted = layer(x, need_map=True)[1] + 1
    torch.testing.assert_close(other(x, need_map=True)[1], shifted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(other(x)[0], layer(x)[0], atol=1e-2)


def test_statistics_are_kept_in_single_precision():
    low, high = attention().train(), attention().train()
    attn = torch.randn(2, 4, 33, 33).softmax(-1).bfloat16()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        mixed, _ = low.mix_heads(attn)
    high.mix_heads(attn.float())
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(dict(low.named_buffers()), dict(high.named_buffers()))


def test_less_memory_for_training_than_convolution_and_batch_norm():
    layer = attention().train()
    x = torch.randn(2, 65, 24, requires_grad=True)
    saved = []
    for forward in (layer, lambda t: reference(layer, t)):
        kept = {}

        def pack(t, kept=kept):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            forward(x)[0].sum()
        size_of_a_map = 2 * 4 * 65 * 65 * 4
        saved.append(sum(size == size_of_a_map for size in kept.values()))
    assert saved == [2, 3]  # A and A'; the reference also keeps what goes into the norm


# --- block, stem and backbone ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('rho', [1.0, 0.5])
def test_residual_scale(rho):
    torch.manual_seed(0)
    model = DeepViT({**ARCH, 'residual_scale': rho}, 32, 8).eval()
    layer = model.layers[0]
    assert layer.ln1.eps == pytest.approx(1e-6 / rho**2)
    x = torch.randn(2, 17, 24) * 1e-3  # so small that epsilon counts
    norms = [nn.LayerNorm(24, eps=1e-6) for _ in range(2)]
    expected = x + layer.attn(norms[0](rho * x))[0] / rho
    expected = expected + layer.ffn(norms[1](rho * expected)) / rho
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-4, atol=1e-6)


def test_layers_without_transform_carry_the_residual_scale():
    model = DeepViT(ARCH, 32, 8)
    assert [layer.attn.apply_transform for layer in model.layers] == [False, True, True]
    assert {layer.residual_scale for layer in model.layers} == {0.5}
    assert [hasattr(layer.attn, 'var_norm') for layer in model.layers] == [False, True, True]


def test_named_models():
    with torch.device('meta'):
        small, large = DeepViT('S'), DeepViT('l')
    transformed = [[layer.attn.apply_transform for layer in m.layers] for m in (small, large)]
    assert transformed == [[False] * 11 + [True] * 5, [False] * 20 + [True] * 12]
    assert small.layers[-1].attn.reatten_scale == pytest.approx(33**-0.5)
    assert large.layers[-1].attn.reatten_scale == 1
    assert len(small.patch_embed.stem) == 2


@pytest.mark.parametrize('size', [(32, 32), (40, 24), (37, 21)])
def test_stem_has_the_grid_of_plain_patches(size):
    stem = ConvStem(3, (6, 6), 20, 8, (32, 32)).eval()
    tokens, grid = stem(torch.randn(2, 3, *size))
    assert grid == (-(-size[0] // 8), -(-size[1] // 8)) and tokens.shape == (
        2,
        grid[0] * grid[1],
        20,
    )
    assert stem.init_out_size == (4, 4)


def test_released_layout_is_complete():
    with torch.device('meta'):
        model = tiny_classifier_of('s')
    keys = ['cls_token', 'patch_embed.bn2.running_var', 'patch_embed.proj.weight', 'norm.bias']
    keys += ['blocks.11.attn.reatten_matrix.bias', 'blocks.15.mlp.fc2.weight', 'head.bias']
    from mmextra.backbones.deepvit import official_keys

    mapped = official_keys(dict.fromkeys(keys))
    assert set(mapped) <= set(model.state_dict())


def tiny_classifier_of(arch):
    return MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(type='mmextra.DeepViT', arch=arch),
            head=dict(type='mmpretrain.VisionTransformerClsHead', num_classes=9, in_channels=396),
        )
    )


def test_initialisation():
    model = DeepViT({**ARCH, 'embed_dims': 64, 'feedforward_channels': 192}, 32, 8)
    model.init_weights()
    linear = model.layers[1].ffn.layers[0][0].requires_grad_(False)
    assert linear.weight.std() == pytest.approx(0.02, rel=0.15) and not linear.bias.any()
    for embedding in (model.cls_token, model.pos_embed):
        assert embedding.data.std() == pytest.approx(0.02, rel=0.4)
    theta = model.layers[1].attn.reatten_matrix
    assert theta.weight.abs().max() <= 4**-0.5 and theta.bias.any()
    rates = [layer.drop_path.drop_prob for layer in DeepViT(ARCH, 32, 8, drop_path_rate=0.2).layers]
    assert rates == pytest.approx([0, 0.1, 0.2])


def test_official_checkpoint_survives_initialisation(tmp_path):
    torch.manual_seed(0)
    source = DeepViT(ARCH, 32, 8)
    theirs = {'ln1.': 'norm1.', 'ln2.': 'norm2.', 'ffn.layers.0.0.': 'mlp.fc1.'}
    theirs.update({'ffn.layers.1.': 'mlp.fc2.', 'layers.': 'blocks.'})
    theirs.update({f'stem.{i}.{k}.': f'{k}{i + 1}.' for i in (0, 1) for k in ('conv', 'bn')})
    theirs['projection.'] = 'proj.'
    state = {}
    for key, value in source.state_dict().items():
        key = key.replace('ln1.', 'norm.') if key.startswith('ln1.') else key
        for ours, name in theirs.items():
            key = key.replace(ours, name)
        state[key] = nn.init.normal_(value.clone().float())
    torch.save(dict(state_dict={f'module.{k}': v for k, v in state.items()}), tmp_path / 'a.pth')
    init = dict(type='mmextra.OfficialCheckpoint', checkpoint=str(tmp_path / 'a.pth'))
    model = MODELS.build(
        dict(type='mmextra.DeepViT', arch=ARCH, img_size=32, patch_size=8, init_cfg=init)
    )
    model.init_weights()
    torch.testing.assert_close(model.pos_embed.data, state['pos_embed'])
    torch.testing.assert_close(
        model.layers[2].attn.reatten_matrix.bias.data, state['blocks.2.attn.reatten_matrix.bias']
    )


def test_checkpoint_of_another_size_loads():
    source, target = DeepViT(ARCH, 32, 8), DeepViT(ARCH, (48, 32), 8)
    nn.init.normal_(source.pos_embed)
    target.load_state_dict(source.state_dict())
    assert target.pos_embed.shape == (1, 6 * 4 + 1, 24)
    torch.testing.assert_close(target.pos_embed[:, 0], source.pos_embed[:, 0])


def interpolation_weights(source, target, align_corners, cubic):
    """Rows of weights (target, source) along one side, from the formulas of the kernels."""
    weights = torch.zeros(target, source, dtype=torch.double)
    for i in range(target):
        at = i * (source - 1) / (target - 1) if align_corners else (i + 0.5) * source / target - 0.5
        at = at if cubic else max(at, 0.0)
        for j in range(math.floor(at) - 1, math.floor(at) + 3):
            d = abs(at - j)
            if not cubic:
                weight = max(0.0, 1 - d)
            elif d <= 1:
                weight = 1.25 * d**3 - 2.25 * d**2 + 1
            else:
                weight = -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            weights[i, min(max(j, 0), source - 1)] += weight
    return weights


@pytest.mark.parametrize('name', ['DeepViT', 'RefinerViT', 'KNNVisionTransformer'])
def test_positions_are_resized_in_double_precision(name):
    arch = {k: ARCH[k] for k in list(ARCH)[:4]}
    model = MODELS.build(dict(type=f'mmextra.{name}', arch=arch, img_size=64, patch_size=8))
    positions = torch.randn(1, 65, 24, dtype=torch.double)
    resized = model.resize_positions(positions, (8, 8), (15, 5))
    linear = name == 'RefinerViT'  # with aligned corners
    down, across = (interpolation_weights(8, n, linear, not linear) for n in (15, 5))
    expected = torch.einsum('ih,jw,bhwc->bijc', down, across, positions[:, 1:].unflatten(1, (8, 8)))
    torch.testing.assert_close(resized[:, 1:], expected.flatten(1, 2), rtol=1e-12, atol=1e-12)
    assert torch.equal(resized[:, 0], positions[:, 0])


@pytest.mark.parametrize('size', [32, 48])
@pytest.mark.parametrize('name', ['DeepViT', 'KNNVisionTransformer', 'STViT'])
def test_checkpoint_with_a_class_token_loads_without_one(name, size):
    """As in the host's class: the position of the class token goes, the others stay, or are resized."""
    from mmpretrain.models import VisionTransformer

    arch = {k: ARCH[k] for k in list(ARCH)[:4]}
    source = VisionTransformer({**arch, 'num_layers': 8}, 32, 8)
    nn.init.normal_(source.pos_embed)
    options = {} if name == 'STViT' else dict(with_cls_token=False, out_type='featmap')
    cfg = dict(type=f'mmextra.{name}', arch={**arch, 'num_layers': 8}, patch_size=8, **options)
    model = MODELS.build(dict(cfg, img_size=size))
    model.load_state_dict(source.state_dict(), strict=False)
    expected = source.pos_embed[:, 1:]
    if size == 48:
        stock = VisionTransformer(arch, 48, 8, with_cls_token=False, out_type='featmap')
        stock.load_state_dict({'pos_embed': expected}, strict=False)
        expected = stock.pos_embed
    torch.testing.assert_close(model.pos_embed, expected)


def test_checkpoint_of_another_grid_that_is_not_square_is_refused():
    target = DeepViT(ARCH, (48, 32), 8)
    target.load_state_dict(DeepViT(ARCH, (48, 32), 8).state_dict())
    with pytest.raises(ValueError, match=r'has 21 patches, this model \(6, 4\)'):
        target.load_state_dict(DeepViT(ARCH, (56, 24), 8).state_dict())


def test_frozen_norms_stay_in_eval_mode():
    model = DeepViT(ARCH, 32, 8, frozen_stages=2).train()
    assert not model.patch_embed.stem[0].bn.training and not model.layers[1].attn.var_norm.training
    assert model.layers[2].attn.var_norm.training
    stem = DeepViT(ARCH, 32, 8, frozen_stages=0).train()
    assert not any(p.requires_grad for p in stem.patch_embed.parameters())
    assert all(p.requires_grad for p in stem.layers.parameters())


def test_recomputation_updates_statistics_once():
    models = [DeepViT(ARCH, 32, 8, with_cp=with_cp).train() for with_cp in (False, True)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(2, 3, 32, 32)
    for model in models:
        model(x)[0].sum().backward()
    torch.testing.assert_close(dict(models[0].named_buffers()), dict(models[1].named_buffers()))


def test_maps_are_kept_in_training_only():
    model = DeepViT(ARCH, 32, 8, cos_reg_maps=1)
    model.eval()(torch.randn(1, 3, 32, 32))
    assert model.attn_maps == []
    model.train()(torch.randn(2, 3, 32, 32))
    assert [tuple(m.shape) for m in model.attn_maps] == [(2, 4, 17, 17)] * 2
    assert not torch.allclose(model.attn_maps[1].sum(-1), torch.ones(()))  # after the transform
    assert copy.deepcopy(model).attn_maps == []  # they are part of a graph, which cannot be copied


def test_norms_can_be_fused_for_inference():
    model = DeepViT(ARCH, 32, 8)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.2)
            norm.running_var.uniform_(0.5, 1.5)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.eval()(x)[-1]
        fused = fuse_conv_bn(model)
        torch.testing.assert_close(fused(x)[-1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(arch='64b'), "arch '64b' is unknown"),
        (dict(arch=dict(embed_dims=24)), r"arch lacks \['feedforward_channels', 'num_heads'"),
        (dict(arch={**ARCH, 'embed_dims': 25}), 'embed_dims=25 is no multiple of num_heads=4'),
        (dict(arch={**ARCH, 'transform_mask': [True]}), 'transform_mask has 1 entries'),
        (dict(arch={**ARCH, 'stem': 'conv3'}), "stem must be one of .*got 'conv3'"),
        (dict(arch={**ARCH, 'transform_masks': [True]}), r"arch has unknown \['transform_masks'\]"),
        (dict(arch=ARCH, layer_cfgs=dict(drop_rate=0.1)), r"for which \['layer_cfgs'\] would mean"),
        (dict(arch=ARCH, patch_cfg=dict(bias=False)), r"for which \['patch_cfg'\] would mean"),
        (dict(arch={**ARCH, 'residual_scale': 0}), 'residual_scale must be positive'),
        (dict(arch=ARCH, patch_size=7), 'patch_size must be even'),
        (dict(arch=ARCH, out_indices=3), r'out_indices must lie in \[-3, 3\)'),
        (dict(arch=ARCH, frozen_stages=4), r'frozen_stages must lie in \[-1, 3\]'),
        (dict(arch=ARCH, out_type='pyramid'), 'Unsupported `out_type`'),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        DeepViT(**options)


def test_bad_number_of_heads():
    with pytest.raises(ValueError, match='embed_dims=24 is no multiple of num_heads=5'):
        ReAttention(24, 5)


# --- how alike the maps are -----------------------------------------------------------------------------------------


def test_similarity_is_that_of_a_slow_loop():
    first, second = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    cosines = []
    for a, b in zip(first.flatten(0, 1).numpy(), second.flatten(0, 1).numpy()):
        for key in range(5):
            u, w = a[:, key], b[:, key]
            cosines.append(np.dot(u, w) / np.linalg.norm(u) / np.linalg.norm(w))
    assert attention_similarity(first, second).item() == pytest.approx(np.mean(cosines), abs=1e-6)
    assert attention_similarity(first, 3 * first).item() == pytest.approx(1)


@torch.no_grad()
def test_re_attention_makes_maps_differ():
    """The same tokens, queries and keys in two layers: their maps differ by Theta alone."""
    x = torch.randn(2, 17, 24)
    layers = [attention(), attention()]
    nn.init.normal_(layers[1].reatten_matrix.weight)
    re_attended = attention_similarity(*(layer.train()(x, need_map=True)[1] for layer in layers))
    plain = attention_similarity(*(plain_maps(layer, x)[0] for layer in layers))
    assert plain == pytest.approx(1) and re_attended < 0.9


@pytest.mark.parametrize('knn', [None, 'applied', 'layer'])
def test_map_of_stock_attention(knn):
    """Also where k-NN attention took its place: the maps are those that are applied to the values."""
    from mmpretrain.models.utils import MultiheadAttention

    from mmextra.backbones.kvt import KNNMultiheadAttention, apply_knn_attention

    x = torch.randn(2, 9, 24)
    layer = MultiheadAttention(24, 4)
    if knn == 'applied':
        apply_knn_attention(layer, topk=3)
    elif knn == 'layer':
        layer = KNNMultiheadAttention(24, 4, topk=3, qk_scale=0.7)
    attn = stock_attention_map(layer, x)
    v = layer.qkv(x)[..., 48:].unflatten(-1, (4, 6)).transpose(1, 2)
    expected = layer.proj((attn @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    assert ((attn > 0).sum(-1) == (3 if knn else 9)).all()


@pytest.mark.parametrize('backbone', ['mmextra.DeepViT', 'VisionTransformer'])
def test_similarity_hook_logs(backbone, tmp_path):
    arch = ARCH if 'Deep' in backbone else {k: ARCH[k] for k in list(ARCH)[:4]}
    model = tiny_classifier(dict(type=backbone, arch=arch, img_size=32, patch_size=8))
    hook = dict(type='mmextra.AttentionSimilarityHook', interval=2, num_batches=1, num_last=1)
    hook['each_pair'] = True
    runner = classification_runner(model, tmp_path, [hook], epochs=3)
    runner.train()
    scalars = runner.message_hub.log_scalars
    similarity, last = (scalars[f'val/attn_similarity{k}'] for k in ('', '_last'))
    assert len(similarity.data[0]) == 2  # of the first and the third validation
    runner.model.eval()
    maps = maps_by_hand(runner.model, next(iter(runner.val_dataloader)))
    pairs = [attention_similarity(a, b).item() for a, b in zip(maps, maps[1:])]
    assert similarity.current() == pytest.approx(np.mean(pairs), abs=1e-5)
    assert last.current() == pytest.approx(pairs[-1], abs=1e-5)
    each = [k for k in scalars if k.rpartition('_')[2].isdigit()]
    assert len(each) == len(pairs)
    for i, pair in enumerate(pairs, 1):
        assert scalars[f'val/attn_similarity_{i}'].current() == pytest.approx(pair, abs=1e-5)
    assert not any(m._forward_hooks for m in runner.model.backbone.layers.modules())


@torch.no_grad()
def maps_by_hand(model, batch):
    batch = model.data_preprocessor(batch)
    maps = []
    for layer in model.backbone.layers:
        layer.attn.register_forward_pre_hook(
            lambda m, inputs: maps.append(
                reference(m, inputs[0])[1]
                if getattr(m, 'apply_transform', False)
                else (m if hasattr(m, 'scale') else with_scale(m)) and plain_maps(m, inputs[0])[0]
            )
        )
    model.extract_feat(batch['inputs'])
    for layer in model.backbone.layers:
        layer.attn._forward_pre_hooks.clear()
    return maps


def with_scale(layer):
    layer.scale = layer.head_dims**-0.5
    return layer


def test_similarity_hook_knows_k_nn_attention():
    from mmextra.backbones.kvt import KNNMultiheadAttention

    hook = AttentionSimilarityHook()
    layers = nn.Sequential(*[KNNMultiheadAttention(24, 3, topk=2) for _ in range(2)])
    hook.before_val(SimpleNamespace(model=layers))
    hook.before_val_iter(None, 0)
    layers(torch.randn(1, 5, 24))
    assert [(m > 0).sum().item() for m in hook._maps] == [3 * 5 * 2] * 2


def test_similarity_hook_needs_attention(tmp_path):
    model = tiny_classifier(dict(type='ResNet', depth=18), in_channels=512)
    runner = classification_runner(model, tmp_path, [dict(type='mmextra.AttentionSimilarityHook')])
    with pytest.raises(ValueError, match='ImageClassifier has 0 attention modules'):
        runner.val()
