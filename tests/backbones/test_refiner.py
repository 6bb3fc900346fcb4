"""Refiner: the authors' numbers, maps that are refined and handed on, and the cosine regulariser."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import fuse_conv_bn
from tiny_classifiers import classification_runner
from tiny_classifiers import classifier as tiny_classifier
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmextra.backbones.refiner import (
    AttnCosRegLoss,
    DistributedLocalAttention,
    RefinedAttention,
    RefinerViT,
)
from mmextra.registry import MODELS

ARCH = dict(embed_dims=24, num_layers=4, num_heads=4, feedforward_channels=48)
TINY = {
    'DistributedLocalAttention': dict(num_heads=4),
    'RefinedAttention': dict(embed_dims=24, num_heads=4),
    'RefinerViT': dict(
        arch=ARCH, img_size=32, patch_size=8, out_type='featmap', out_indices=(0, 1, 2, 3)
    ),
    'AttnCosRegLoss': dict(num_pairs=2),
    'AttnCosRegHook': dict(loss=dict(type='mmextra.AttnCosRegLoss', num_pairs=2)),
}


def randomised(module):
    """Parameters and running statistics that are far from their initial values."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1, 0.2)
            part.running_mean.normal_(std=0.2)
            part.running_var.uniform_(0.5, 1.5)
    return module


def attention(**options):
    return randomised(RefinedAttention(**{**TINY['RefinedAttention'], **options}))


def backbone(**options):
    torch.manual_seed(0)
    model = MODELS.build(dict(type='mmextra.RefinerViT', **{**TINY['RefinerViT'], **options}))
    model.init_weights()
    return model


def plain_dla(dla, attn):
    """Distributed local attention, layer by layer."""
    hidden = attn
    if dla.expand_ratio != 1:
        hidden = F.relu6(dla.bn1(dla.conv_exp(hidden)))
    hidden = F.relu6(dla.bn2(dla.depth_sep_conv(hidden)))
    return dla.bn3(dla.conv_pro(hidden)) + attn


# --- the authors' numbers -------------------------------------------------------------------------------------------


@pytest.mark.golden('refiner', 'dla*')
def test_dla(case):
    options = case.meta['kwargs']
    dla = DistributedLocalAttention(
        options['inp'], options.get('expand_ratio', 3), options.get('kernel_size', 3)
    )
    case.load(dla, layout='refiner')
    x = case.inputs['x']
    y = dla.eval()(x)
    case.check(dict(y=y, y_train=dla.train()(x)))


def refined_attention(kwargs):
    names = dict(
        num_heads='num_heads',
        qkv_bias='qkv_bias',
        qk_scale='qk_scale',
        share='share_atten',
        apply_transform='apply_transform',
        head_expand='head_expand',
        kernel_size='kernel_size',
    )
    upstream = dict(num_heads=8, qkv_bias=False, apply_transform=True)  # the authors' defaults
    given = {k: v for k, v in {**upstream, **kwargs}.items() if v is not None}
    return RefinedAttention(kwargs['dim'], **{n: given[k] for n, k in names.items() if k in given})


@pytest.mark.golden('refiner', 'attn_*')
def test_refined_attention(case):
    layer = case.load(refined_attention(case.meta['kwargs']), layout='refiner').eval()
    out = {}
    out['y'], out['attn_next'] = layer(case.inputs['x'], case.inputs.get('prev'))
    if not layer.share:
        out['y_noprev'], out['attn_next_noprev'] = layer(case.inputs['x'])
    case.check(out)


def classifier(kwargs):
    depth, dims = kwargs['depth'], kwargs.get('embed_dim', 768)
    share = [bool(d) and kwargs.get('share_atten', True) for d in depth]
    eps = kwargs.get('norm_layer', '').partition('eps=')[2] or 1e-5
    dense = kwargs.get('return_dense', False)
    names = dict(img_size='img_size', patch_size='patch_size', in_channels='in_chans')
    names.update(qk_scale='qk_scale', head_expand='head_expand')
    options = {k: kwargs[name] for k, name in names.items() if kwargs.get(name) is not None}
    head = dict(num_classes=kwargs.get('num_classes', 1000), in_channels=dims)
    return MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(
                type='mmextra.RefinerViT',
                arch=dict(
                    embed_dims=dims,
                    num_layers=len(depth),
                    num_heads=kwargs.get('num_heads', 12),
                    feedforward_channels=int(dims * kwargs.get('mlp_ratio', 4)),
                ),
                share_pattern=share,
                apply_transform=kwargs.get('apply_transform') or False,
                qkv_bias=kwargs.get('qkv_bias', False),
                norm_cfg=dict(type='LN', eps=float(eps)),
                out_type='dense' if dense else 'cls_token',
                mix_token=dense and kwargs.get('mix_token', False),
                **options,
            ),
            head=dict(type='mmextra.TokenLabelClsHead', **head)
            if dense
            else dict(type='mmpretrain.VisionTransformerClsHead', **head),
        )
    )


@pytest.mark.golden('refiner', 'refiner_tiny*')
def test_refiner(case):
    model = case.load(classifier(case.meta['kwargs']), layout='refiner').eval()
    seen = {}

    def see(index):
        def hook(module, inputs, output):
            seen.update({f'block_{index}': output[0], f'attn_{index}': output[1][:1]})

        return hook

    for index, layer in enumerate(model.backbone.layers):
        layer.register_forward_hook(see(index))
    model.backbone.ln1.register_forward_hook(lambda m, i, o: seen.update(features=o))
    x = case.inputs['x']
    with torch.no_grad():
        seen['logits'] = model(x)
        seen['cls'] = seen['logits']
        if case.meta['kwargs'].get('return_dense'):
            seen['cls'], seen['aux'], _ = model.head.scores(model.extract_feat(x))
        out = dict(seen)
        if 'box' in case.inputs:
            box = tuple(case.inputs['box'].tolist())
            model.backbone.mix_token.sample_box = lambda height, width: box
            model.backbone.training = True  # and nothing inside of it
            out['mix_cls'], out['mix_aux'], _ = model.head.scores(model.backbone(x))
    case.check(out)


@pytest.mark.parametrize(
    'arch, params, macs',
    [('s', 25_408_656, 6.82e9), ('m', 55_450_932, 13.50e9), ('l', 81_150_192, 19.19e9)],
)
def test_size_and_cost(arch, params, macs):
    with torch.device('meta'), FlopCounterMode(display=False) as counter, torch.no_grad():
        model = RefinerViT(arch, out_type='dense').eval()
        head = MODELS.build(
            dict(type='mmextra.TokenLabelClsHead', num_classes=1000, in_channels=model.embed_dims)
        )
        head(model(torch.empty(1, 3, 224, 224)))
    of_backbone = sum(p.numel() for p in model.parameters())
    assert of_backbone + sum(p.numel() for p in head.parameters()) == params
    assert sum(p.numel() for p in head.aux_fc.parameters()) == 1000 * model.embed_dims + 1000
    assert counter.get_total_flops() / 2 == pytest.approx(macs, rel=5e-3)
    assert any('convolution' in str(op) for op in counter.get_flop_counts()['Global'])


# --- distributed local attention ------------------------------------------------------------------------------------


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize(
    'options', [{}, dict(expand_ratio=1), dict(kernel_size=5), dict(kernel_size=2)]
)
def test_dla_equals_its_layers(options, training):
    """Outputs, all gradients and running statistics, although the layers are never run one by one."""
    ours = randomised(DistributedLocalAttention(4, **options)).train(training)
    plain = copy.deepcopy(ours)
    attn = torch.randn(2, 4, 7, 7).softmax(-1)
    results = []
    for layer, forward in ((ours, ours), (plain, lambda x: plain_dla(plain, x))):
        leaf = attn.clone().requires_grad_()
        y = forward(leaf)
        y.sin().sum().backward()
        grads = {k: p.grad for k, p in layer.named_parameters()}
        results.append((y, leaf.grad, grads, dict(layer.named_buffers())))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


def test_dla_without_projection_is_the_identity():
    dla = randomised(DistributedLocalAttention(4))
    nn.init.zeros_(dla.conv_pro.weight)
    nn.init.zeros_(dla.bn3.bias)
    dla.bn3.running_mean.zero_()
    attn = torch.randn(2, 4, 7, 7)
    for mode in (True, False):
        torch.testing.assert_close(dla.train(mode)(attn), attn)


def test_dla_parameters():
    dla = DistributedLocalAttention(12)
    weights = 12 * 36 + 36 * 9 + 36 * 12
    assert sum(p.numel() for p in dla.parameters()) == weights + 2 * (36 + 36 + 12)
    assert all(m.bias is None for m in dla.modules() if isinstance(m, nn.Conv2d))


def test_converted_norms_are_used_as_they_are():
    class OtherNorm(nn.BatchNorm2d):
        """Stands for a synchronised norm, which computes other statistics."""

        def forward(self, x):
            return super().forward(x) + 1

    ours = randomised(DistributedLocalAttention(4)).train()
    for norm in (ours.bn1, ours.bn2, ours.bn3):
        norm.__class__ = OtherNorm
    attn = torch.randn(2, 4, 7, 7).softmax(-1)
    torch.testing.assert_close(
        ours(attn), plain_dla(copy.deepcopy(ours), attn), rtol=1e-4, atol=1e-5
    )


# --- attention ------------------------------------------------------------------------------------------------------


def maps(batch=2, num=9):
    return torch.randn(batch, 4, num, num).softmax(-1)


def test_first_layer_is_plain_attention():
    layer, x = attention().eval(), torch.randn(2, 9, 24)
    q, k, v = layer.qkv(x).unflatten(-1, (3, 4, 6)).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    y, handed_on = layer(x)
    torch.testing.assert_close(y, layer.proj(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(handed_on.sum(-1), torch.ones(2, 4, 9))


def test_share_layer_hands_on_what_it_got():
    layer, prev = attention(share=True), maps()
    for mode in (True, False):
        y, handed_on = layer.train(mode)(torch.randn(2, 9, 24), prev)
        assert handed_on is prev and y.shape == (2, 9, 24)
    assert layer.qkv.weight.shape == (24, 24)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('share', [False, True])
def test_refined_map_is_used(share, training):
    """Against the formulas of section 3, with the same norms; map handed on and map that is used."""
    ours = attention(share=share, apply_transform=not share, head_expand=2).train(training)
    plain, x, prev = copy.deepcopy(ours), torch.randn(2, 9, 24), maps()
    scale = 6**-0.5
    parts = plain.qkv(x).unflatten(-1, (-1, 4, 6)).permute(2, 0, 3, 1, 4)
    if share:
        used = scale * plain.adapt_bn(plain_dla(plain.dla, prev))
        expected_next = prev
    else:
        used = (scale * parts[0] @ parts[1].mT).softmax(-1) + scale * prev
        used = expected_next = plain.adapt_bn(plain_dla(plain.dla, used))
    y, handed_on = ours(x, prev)
    torch.testing.assert_close(handed_on, expected_next, rtol=1e-3, atol=1e-4)
    expected = plain.proj((used @ parts[-1]).transpose(1, 2).flatten(2))
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-4)
    if not training:
        torch.testing.assert_close(ours.attention_map(x, prev), used, rtol=1e-3, atol=1e-4)


def test_share_layer_needs_a_map():
    with pytest.raises(ValueError, match='needs the map of the layer before'):
        attention(share=True)(torch.randn(2, 9, 24))
    with pytest.raises(ValueError, match='embed_dims=24 is no multiple of num_heads=5'):
        RefinedAttention(24, 5)


# --- backbone -------------------------------------------------------------------------------------------------------


def test_maps_add_up_geometrically():
    model, sums = backbone(arch={**ARCH, 'num_layers': 8}, out_indices=-1).eval(), []
    for layer in model.layers:
        layer.register_forward_hook(lambda m, i, o: sums.append(o[1].sum(-1)))
    model(torch.randn(2, 3, 32, 32))
    sigma = 6**-0.5
    for depth, row_sums in enumerate(sums[::2]):
        expected = torch.full_like(row_sums, sum(sigma**k for k in range(depth + 1)))
        torch.testing.assert_close(row_sums, expected)
        assert row_sums.max() < 1 / (1 - sigma)
    for plain, share in zip(sums[::2], sums[1::2]):
        assert torch.equal(plain, share)


def test_released_models_do_not_use_head_expand():
    for name in 'sml':
        assert RefinerViT.settings_of(name)['head_expand'] == (6 if name == 's' else 3)
    x, models = torch.randn(2, 3, 32, 32), [backbone(head_expand=e).eval() for e in (3, 6)]
    assert models[1].layers[1].attn.dla.expand_ratio == 3
    torch.testing.assert_close(models[0](x), models[1](x))
    transformed = backbone(apply_transform=True, head_expand=6)
    assert [layer.attn.dla.expand_ratio for layer in transformed.layers] == [6, 3, 6, 3]
    kernels = [attention(share=s, apply_transform=True, kernel_size=5) for s in (False, True)]
    assert [layer.dla.depth_sep_conv.kernel_size for layer in kernels] == [(5, 5), (3, 3)]
    one = backbone(apply_transform=[False, False, True, False])
    assert [layer.attn.dla is None for layer in one.layers] == [True, False, False, False]


def test_layers():
    model = backbone(share_pattern=[False, False, True, True], drop_path_rate=0.3)
    assert [layer.attn.share for layer in model.layers] == [False, False, True, True]
    assert {layer.residual_scale for layer in model.layers} == {0.5}
    assert all((layer.ffn.gamma2.weight == 1e-5).all() for layer in model.layers)
    rates = [layer.ffn.dropout_layer.drop_prob for layer in model.layers]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    widths = [conv.conv.out_channels for conv in model.patch_embed.stem]
    assert widths == [32, 64, 128]


@pytest.mark.parametrize('align', [True, False])
def test_positions_are_resized_bilinearly(align):
    model = backbone(pos_align_corners=align)
    nn.init.normal_(model.pos_embed)
    resized = model.resize_positions(model.pos_embed, (4, 4), (7, 7))
    assert torch.equal(resized[:, 0], model.pos_embed[:, 0])
    middle = (model.pos_embed[0, 1] + model.pos_embed[0, 2]) / 2
    assert torch.allclose(resized[0, 2], middle) == align
    larger = backbone(img_size=56, pos_align_corners=align)
    larger.load_state_dict(model.state_dict())
    torch.testing.assert_close(larger.pos_embed.data, resized.data)


def test_dense_output_feeds_the_token_label_head():
    model = backbone(out_type='dense', out_indices=(1, 3), mix_token=True, cos_reg_maps=2)
    x = torch.randn(2, 3, 40, 32)
    first, (featmap, cls_token, box) = model.eval()(x)
    assert first.shape == featmap.shape == (2, 24, 5, 4) and box == ()
    raw = backbone(out_type='raw', out_indices=-1).eval()(x)[0]
    torch.testing.assert_close(cls_token, raw[:, 0])
    torch.testing.assert_close(featmap.flatten(2).mT, raw[:, 1:])
    *_, attn_maps = model.train()(x)[-1]
    assert len(attn_maps) == 3 and attn_maps[0] is attn_maps[1]


def test_copies_leave_the_maps_behind():
    """The maps of a training step are part of its graph, which can neither be copied nor pickled."""
    model = backbone(out_type='dense', out_indices=-1, cos_reg_maps=2).train()
    x = torch.randn(2, 3, 32, 32)
    model(x)
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    assert len(model.attn_maps) == 3 and all(c.attn_maps == [] for c in copies)
    expected = model.eval()(x)[-1]
    for other in copies:
        assert torch.equal(other.eval()(x)[-1][0], expected[0])


def test_traces_for_any_batch_size():
    model = backbone(out_type='cls_token', out_indices=-1).eval()
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        traced = torch.jit.trace(model, (x[:2],), check_trace=False)
        torch.testing.assert_close(traced(x)[0], model(x)[0], rtol=1e-4, atol=1e-5)


def test_mixed_tokens(monkeypatch):
    """Tokens in the box come from the other image; positions and class token do not move."""
    model = backbone(out_type='dense', out_indices=-1, mix_token=True).train()
    monkeypatch.setattr(model.mix_token, 'sample_box', lambda height, width: (1, 0, 3, 2))
    model.add_positions = lambda x, grid: (
        seen.append(x) or type(model).add_positions(model, x, grid)
    )
    seen, x = [], torch.randn(2, 3, 32, 32)
    ((featmap, _, box),) = model(x)
    model.patch_embed.eval()
    tokens = seen[0].unflatten(1, (4, 4))
    model.mix_token = None
    model(x)
    assert box == (1, 0, 3, 2) and featmap.shape == (2, 24, 4, 4)
    unmixed = model.patch_embed.train()(x)[0].unflatten(1, (4, 4))
    torch.testing.assert_close(tokens[0, 1:3, :2], unmixed[1, 1:3, :2])
    torch.testing.assert_close(tokens[0, 1:3, 2:], unmixed[0, 1:3, 2:])


def test_norms_can_be_fused_for_inference():
    model = backbone(apply_transform=True)
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
        (dict(arch='xl'), "arch 'xl' is unknown"),
        (dict(share_pattern=[True, False, True, False]), r'share_pattern\[0\] must be False'),
        (dict(share_pattern=[False, True]), 'share_pattern has 2 entries for num_layers=4'),
        (dict(apply_transform=[True]), 'apply_transform has 1 entries for num_layers=4'),
        (dict(mix_token=True), "mix_token needs out_type='dense'"),
        (dict(with_cls_token=False, out_type='dense'), 'with_cls_token must be True'),
        (dict(layer_scale_init_value=0.1), r"for which \['layer_scale_init_value'\] would mean"),
        (dict(mix_token=True, out_type='dense', out_indices=(0, 1)), 'box with the last layer'),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        backbone(**options)


# --- cosine regulariser ---------------------------------------------------------------------------------------------


def slow_cosines(attn_maps, num_pairs):
    total = 0.0
    for i in range(num_pairs):
        batch, _, rows, columns = attn_maps[i].shape
        cosines = []
        for b in range(batch):
            for r in range(rows):
                for c in range(columns):
                    u, w = attn_maps[i][b, :, r, c], attn_maps[i + 1][b, :, r, c]
                    cosines.append((u @ w) / (u.norm() * w.norm()))
        total = total + torch.stack(cosines).mean()
    return total / num_pairs


def test_regulariser_is_that_of_a_slow_loop():
    attn_maps = [torch.rand(2, 3, 4, 4, dtype=torch.double, requires_grad=True) for _ in range(4)]
    loss = AttnCosRegLoss(loss_weight=0.3, num_pairs=2)
    torch.testing.assert_close(loss(attn_maps), 0.3 * slow_cosines(attn_maps, 2))
    assert torch.autograd.gradcheck(lambda *m: loss(m), attn_maps[:3], atol=1e-6)


def test_a_map_handed_on_twice_counts_one():
    one, two = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    loss = AttnCosRegLoss(loss_weight=1, num_pairs=2)
    expected = (1 + slow_cosines([one, two], 1)) / 2
    torch.testing.assert_close(loss([one, one, two]), expected)
    torch.testing.assert_close(loss([one, one.clone(), two]), expected)
    torch.testing.assert_close(loss([one, one, one]), torch.ones(()))


def test_regulariser_needs_enough_maps():
    with pytest.raises(ValueError, match='takes 13 attention maps, got 2'):
        AttnCosRegLoss()([torch.rand(1, 2, 3, 3)] * 2)
    with pytest.raises(ValueError, match='num_pairs must be at least 1'):
        AttnCosRegLoss(num_pairs=0)
    with pytest.raises(ValueError, match="loss_name='attn_cos' must have 'loss' in it"):
        AttnCosRegLoss(loss_name='attn_cos')


def test_regulariser_in_the_token_label_head():
    from mmpretrain.structures import DataSample

    head = MODELS.build(
        dict(
            type='mmextra.TokenLabelClsHead',
            num_classes=3,
            in_channels=24,
            aux_losses=[dict(type='mmextra.AttnCosRegLoss', num_pairs=2)],
        )
    )
    model = backbone(out_type='dense', out_indices=-1, cos_reg_maps=2).train()
    feats = model(torch.randn(2, 3, 32, 32))
    losses = head.loss(feats, [DataSample().set_gt_label(i) for i in range(2)])
    assert set(losses) == {'loss', 'loss_attn_cos'}
    torch.testing.assert_close(losses['loss_attn_cos'], AttnCosRegLoss(num_pairs=2)(feats[-1][3]))
    sum(losses.values()).backward()
    assert model.layers[2].attn.qkv.weight.grad.any()


@pytest.mark.parametrize('name', ['DeepViT', 'RefinerViT'])
def test_regulariser_hook(name, tmp_path):
    """The loss joins in under a stock head, reaches the weights, and leaves no trace in the checkpoint."""
    model = tiny_classifier(dict(type=f'mmextra.{name}', arch=ARCH, img_size=32, patch_size=8))
    states = []
    for weight in (0.0, 10.0):
        loss = dict(type='mmextra.AttnCosRegLoss', num_pairs=2, loss_weight=weight)
        hooks = [dict(type='mmextra.AttnCosRegHook', loss=loss)]
        runner = classification_runner(model, tmp_path, hooks, epochs=1)
        before = set(runner.model.state_dict())
        runner.train()
        states.append(torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['state_dict'])
        assert set(states[-1]) == before
        assert runner.model.backbone.attn_maps == [] and not runner.model._forward_hooks
    logged = runner.message_hub.get_scalar('train/loss_attn_cos').current()
    assert logged != 0 and abs(logged) <= 10
    key = (
        'backbone.layers.1.attn.qkv.weight'
        if name == 'DeepViT'
        else 'backbone.layers.0.attn.qkv.weight'
    )
    assert not torch.equal(states[0][key], states[1][key])


@pytest.mark.parametrize(
    'backbone_cfg, message',
    [
        (dict(type='ResNet', depth=18), 'is ResNet, which keeps no attention maps'),
        (dict(type='mmextra.DeepViT', arch=ARCH), 'must be less than the layers .*: 4'),
    ],
)
def test_regulariser_hook_refuses(backbone_cfg, message, tmp_path):
    runner = classification_runner(
        tiny_classifier(backbone_cfg), tmp_path, [dict(type='mmextra.AttnCosRegHook')], epochs=1
    )
    with pytest.raises(ValueError, match=message):
        runner.train()
