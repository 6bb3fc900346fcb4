"""Scaled ReLU conv-stem: the authors' numbers, the ablations, and the stem inside stock backbones."""

import copy
from pathlib import Path

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import convert_sync_batchnorm
from tiny_classifiers import classification_runner, classifier
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmextra.backbones.scaled_relu import (
    IBN,
    LossSpikeHook,
    ScaledReLUConvStem,
    ScaledReLUPatchEmbed,
    StemDiversityHook,
    token_similarity,
)
from mmextra.registry import HOOKS, MODELS

CONFIGS = Path(__file__).parents[2] / 'configs/scaled_relu'
ARCH = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=24)
STEM = dict(in_channels=3, out_channels=20, kernel_size=8, stride=8)
TINY = {
    **dict.fromkeys(
        (
            'ScaledReLUConvStem',
            'ScaledReLUConvStem32',
            'ScaledReLUConvStemIBN',
            'ScaledReLUConvStemLN',
            'ScaledReLUConvStemCP',
            'ConvStem',
            'ConvBNStem',
            'ConvReLUStem',
        ),
        STEM,
    ),
    'IBN': dict(num_features=6),
    'ScaledReLUPatchEmbed': dict(embed_dims=20, kernel_size=8, stem_cfg=dict(hidden=12)),
    'StemDiversityHook': dict(interval=1),
    'LossSpikeHook': dict(window=5),
}


def stem(**options):
    torch.manual_seed(0)
    return ScaledReLUConvStem(**STEM, **{'hidden': 12, **options})


def vit(conv_type, arch='deit-tiny', **options):
    from mmpretrain.registry import MODELS as HOST

    patch_cfg = dict(conv_type=conv_type)
    return HOST.build(dict(type='VisionTransformer', arch=arch, patch_cfg=patch_cfg, **options))


def tiny_vit(conv_type, **options):
    return vit(conv_type, ARCH, img_size=32, **options)


# --- the authors' numbers -------------------------------------------------------------------------------------------


@pytest.mark.golden('scaled_relu', 'conv_stem*')
def test_conv_stem(case):
    upstream = dict(stem_stride=1, patch_size=8, in_chans=3, hidden_dim=64, embed_dim=384)
    options = {**upstream, **case.meta['kwargs']}
    patch = options['patch_size']
    ibn, bn = dict(type='mmextra.IBN'), dict(type='BN')
    layer = ScaledReLUConvStem(
        options['in_chans'],
        options['embed_dim'],
        patch,
        patch,
        hidden=options['hidden_dim'],
        norm_cfg=[ibn if f'conv.{i}.IN.weight' in case.state else bn for i in (1, 4, 7)],
        stem_stride=options['stem_stride'],
    )
    case.load(layer, layout='scaled_relu')
    x = case.leaf('x')
    out = dict(y_train=layer.train()(x))
    rewind(layer, case)
    out['y'] = layer.eval()(x)
    if 'w' in case.inputs:
        (out['y'] * case.inputs['w']).sum().backward()
    grads = {k: p.grad for k, p in layer.named_parameters()}
    layer.train()(x)
    out.update({f'after/{k}': v for k, v in layer.state_dict().items() if 'running' in k})
    case.check(out, dict(grads, x=x.grad))


@torch.no_grad()
def rewind(layer, case, momentum=0.1):
    """Undo one training forward where the file's ``state`` was written after it: its ``y`` was computed before."""
    seen = layer.state_dict()
    for name, state in case.state.items():
        if 'running' in name:
            batch = (seen[name] - (1 - momentum) * state) / momentum  # does not depend on `state`
            after = case.outputs.get(f'after/{name}')
            written_after = after is not None and torch.equal(state, after)
            seen[name].copy_(
                (state - momentum * batch) / (1 - momentum) if written_after else state
            )


HEAD = {'tiny': 193_000, 'small': 385_000, 'base': 769_000}  # Linear C -> 1000


@pytest.mark.parametrize(
    'size, depth, params, macs',
    [
        ('tiny', 12, 6_439_912, 2.422e9),
        ('small', 12, 23_412_136, 5.892e9),
        ('base', 12, 89_207_080, 19.108e9),
        ('tiny', 11, 5_995_048, 2.320e9),
        ('small', 11, 21_637_672, 5.514e9),
        ('base', 11, 82_119_208, 17.654e9),
    ],
)
def test_size_and_cost_in_stock_deit(size, depth, params, macs):
    from mmpretrain.models import VisionTransformer

    arch = {**VisionTransformer.arch_zoo[f'deit-{size}'], 'num_layers': depth}
    with torch.device('meta'), FlopCounterMode(display=False) as counter, torch.no_grad():
        model = vit('mmextra.ScaledReLUConvStem', arch)
        model(torch.empty(1, 3, 224, 224))
    assert sum(p.numel() for p in model.parameters()) + HEAD[size] == params
    assert counter.get_total_flops() / 2 == pytest.approx(macs, rel=1e-3)
    layers = sum(p.numel() for p in model.patch_embed.projection.conv.parameters())
    assert layers == 3 * 64 * 49 + 2 * 64 * 64 * 9 + 3 * 2 * 64 == 83_520


@pytest.mark.parametrize(
    'name', ['tiny_4xb256', 'small_4xb256', 'small-11blk_4xb256', 'base_16xb64']
)
def test_recipe_of_deit(name):
    cfg = Config.fromfile(CONFIGS / f'scaled-relu_deit-{name}_in1k.py')
    machines, batch = (int(n) for n in name.partition('_')[2].split('xb'))
    assert machines * batch == 1024 and cfg.train_dataloader.batch_size == batch
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-3, 0.05)
    assert cfg.optim_wrapper.get('clip_grad') is None
    warmup, cosine = cfg.param_scheduler
    assert (warmup.end, cosine.begin, cosine.eta_min) == (5, 5, 1e-5)
    assert cfg.train_cfg.max_epochs == 300
    transforms = {t.type for t in cfg.train_dataloader.dataset.pipeline}
    assert {'RandAugment', 'RandomErasing'} <= transforms
    assert cfg.model.backbone.drop_path_rate == 0.1
    assert cfg.train_dataloader.sampler.type == 'RepeatAugSampler'
    assert [a.type for a in cfg.model.train_cfg.augments] == ['Mixup', 'CutMix']
    assert [hook.momentum for hook in cfg.custom_hooks] == [pytest.approx(1 - 0.99996)]
    assert cfg.model.backbone.arch == f'deit-{name.partition("_")[0]}' or '11blk' in name


def test_fine_tuning_of_deit():
    """Not the schedule of the first ViT, which the host's config of this size has."""
    cfg = Config.fromfile(CONFIGS / 'scaled-relu_deit-base_16xb32_in1k-384px.py')
    assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == (32, 512)
    assert (cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.optimizer.weight_decay) == (
        5e-6,
        1e-8,
    )
    assert cfg.optim_wrapper.clip_grad is None and cfg.param_scheduler == []
    assert cfg.train_cfg.max_epochs == 30
    assert (cfg.model.backbone.img_size, cfg.model.backbone.drop_path_rate) == (384, 0.1)
    for transform in cfg.train_dataloader.dataset.pipeline:
        if transform.type == 'RandomResizedCrop':
            assert transform.scale == 384
    resize, crop = cfg.test_dataloader.dataset.pipeline[1:3]
    assert (resize.scale, crop.crop_size) == (int(384 * 256 / 224), 384)


# --- the stem in stock backbones ------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [(32, 32), (48, 80), (37, 50)])
def test_same_token_grid_as_patchify(size):
    ours, stock = tiny_vit('mmextra.ScaledReLUConvStem'), tiny_vit('Conv2d')
    assert ours.patch_embed.init_out_size == stock.patch_embed.init_out_size == (2, 2)
    x = torch.randn(2, 3, *size)
    assert ours.patch_embed(x)[1] == stock.patch_embed(x)[1]
    assert ours(x)[0].shape == stock(x)[0].shape  # with positions resized


def test_position_embedding_resizes_to_384():
    with torch.device('meta'):
        model = vit('mmextra.ScaledReLUConvStem', img_size=384, out_type='featmap')
        outs = model(torch.empty(1, 3, 384, 384)), model(torch.empty(1, 3, 256, 384))
    assert [tuple(out[0].shape) for out in outs] == [(1, 192, 24, 24), (1, 192, 16, 24)]


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg'])
def test_swin_of_every_host_takes_it(scope):
    from mmengine.registry import MODELS as ROOT
    from mmengine.registry import DefaultScope

    DefaultScope.get_instance('test', scope_name=scope)
    arch = dict(embed_dims=12, depths=[1, 1], num_heads=[1, 1])
    backbone = ROOT.build(
        dict(
            type='mmpretrain.SwinTransformer',
            arch=arch,
            img_size=56,
            out_indices=(0, 1),
            stage_cfgs=dict(pad_small_map=True),
            patch_cfg=dict(conv_type='mmextra.ScaledReLUConvStem'),
        )
    )
    shapes = [tuple(out.shape[1:]) for out in backbone(torch.randn(2, 3, 56, 84))]
    assert shapes == [(12, 14, 21), (24, 7, 11)]


def test_frozen_backbone_leaves_running_statistics_alone():
    model = tiny_vit('mmextra.ScaledReLUConvStem', frozen_stages=1)
    model.train()
    norm = model.patch_embed.projection.conv[1]
    before = norm.running_mean.clone()
    model(torch.randn(2, 3, 32, 32))
    assert not norm.training and torch.equal(norm.running_mean, before)


def test_sync_bn_conversion_reaches_the_stem():
    model = convert_sync_batchnorm(tiny_vit('mmextra.ScaledReLUConvStemIBN'))
    norms = model.patch_embed.projection.conv[1::3]
    assert isinstance(norms[0].BN, nn.SyncBatchNorm) and isinstance(norms[2], nn.SyncBatchNorm)


def test_stock_fusion_of_conv_and_bn_is_exact():
    layer = stem().train()
    x = torch.randn(4, 3, 32, 32)
    layer(x)
    fused = fuse_conv_bn(copy.deepcopy(layer.eval()))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    torch.testing.assert_close(fused(x), layer(x), rtol=1e-4, atol=1e-5)


def test_export_with_stock_backbone():
    model = tiny_vit('mmextra.ScaledReLUConvStem')
    model.eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x)[0], model(x)[0])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_mixed_precision_is_finite(dtype):
    model = tiny_vit('mmextra.ScaledReLUConvStem')
    with torch.autocast('cpu', dtype=dtype):
        out = model(torch.randn(2, 3, 32, 32))[0]
    out.float().square().mean().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.patch_embed.parameters())


# --- what the parts do ----------------------------------------------------------------------------------------------


def defect_from_affine(layer):
    x, y = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        layer.eval()
        return (layer(x + y) - layer(x) - layer(y) + layer(torch.zeros_like(x))).abs().max().item()


def test_stem_is_affine_exactly_without_an_activation():
    assert defect_from_affine(stem(act_cfg=None)) < 1e-4
    assert defect_from_affine(MODELS.build(dict(type='ConvStem', **STEM))) < 1e-4
    assert defect_from_affine(MODELS.build(dict(type='ConvBNStem', **STEM))) < 1e-4
    assert defect_from_affine(MODELS.build(dict(type='ConvReLUStem', **STEM))) > 1e-3
    assert defect_from_affine(stem()) > 1e-3


def test_dead_scale_gives_one_constant_token():
    """With the last BN's weight 0, every position is relu(bias), projected."""
    layer = stem().eval()
    bias = torch.randn(12)
    with torch.no_grad():
        layer.conv[7].weight.zero_()
        layer.conv[7].bias.copy_(bias)
        out = layer(torch.randn(2, 3, 32, 32))
        token = torch.einsum('oihw,i->o', layer.proj.weight, bias.relu()) + layer.proj.bias
    torch.testing.assert_close(out, token.view(1, -1, 1, 1).expand_as(out), rtol=1e-4, atol=1e-5)


def test_recomputed_stem_gives_the_same_gradients_and_statistics():
    plain = MODELS.build(dict(type='ScaledReLUConvStemIBN', hidden=12, **STEM)).train()
    recomputed = copy.deepcopy(plain)
    recomputed.with_cp = True
    x = torch.randn(2, 3, 32, 32)
    for layer in (plain, recomputed):
        layer(x).square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), recomputed.parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for a, b in zip(plain.buffers(), recomputed.buffers()):
        assert torch.equal(a, b)
    assert recomputed.conv[7].momentum == 0.1 and recomputed.conv[7].num_batches_tracked == 1


def test_recomputed_norm_without_running_statistics():
    norm = dict(type='BN', track_running_stats=False)
    plain, recomputed = (stem(norm_cfg=norm, with_cp=with_cp).train() for with_cp in (False, True))
    x = torch.randn(2, 3, 32, 32)
    for layer in (plain, recomputed):
        layer(x).square().mean().backward()
    for a, b in zip(plain.parameters(), recomputed.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


def test_recomputation_keeps_fewer_activations():
    def kept(with_cp):
        shapes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: shapes.append(t.shape) or t, lambda t: t
        ):
            stem(with_cp=with_cp).train()(torch.randn(2, 3, 32, 32))
        return sum(1 for shape in shapes if shape[-2:] == (16, 16))

    assert kept(False) > 3 and kept(True) <= 1


def test_ibn_normalises_halves_differently():
    layer, x = IBN(5).train(), torch.randn(3, 5, 4, 4) * 3 + 1
    out = layer(x)
    for b in range(3):
        for c in range(5):
            group = x[b, c] if c < 2 else x[:, c]
            expected = (x[b, c] - group.mean()) / (group.var(correction=0) + 1e-5).sqrt()
            torch.testing.assert_close(out[b, c], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'name, norms, acts, hidden, with_cp',
    [
        ('ScaledReLUConvStem', ['BatchNorm2d'] * 3, 'ReLU', 64, False),
        ('ScaledReLUConvStem32', ['BatchNorm2d'] * 3, 'ReLU', 32, False),
        ('ScaledReLUConvStemIBN', ['IBN', 'IBN', 'BatchNorm2d'], 'ReLU', 64, False),
        ('ScaledReLUConvStemLN', ['LayerNorm2d'] * 3, 'ReLU', 64, False),
        ('ScaledReLUConvStemCP', ['BatchNorm2d'] * 3, 'ReLU', 64, True),
        ('ConvStem', ['Identity'] * 3, 'Identity', 64, False),
        ('ConvBNStem', ['BatchNorm2d'] * 3, 'Identity', 64, False),
        ('ConvReLUStem', ['Identity'] * 3, 'ReLU', 64, False),
    ],
)
def test_named_settings(name, norms, acts, hidden, with_cp):
    layer = MODELS.build(dict(type=name, **STEM))
    assert [type(m).__name__ for m in layer.conv[1::3]] == norms
    assert {type(m).__name__ for m in layer.conv[2::3]} == {acts}
    assert layer.conv[0].out_channels == hidden and layer.with_cp == with_cp
    biased = [conv.bias is not None for conv in layer.conv[0::3]]
    assert biased == [norm == 'Identity' for norm in norms]
    assert layer(torch.randn(2, 3, 32, 32)).shape == (2, 20, 4, 4)


@pytest.mark.parametrize(
    'norm', [dict(type='GN', num_groups=4), dict(type='mmpretrain.LN2d'), None]
)
@pytest.mark.parametrize('act', [dict(type='GELU'), None])
@pytest.mark.parametrize(
    'convs',
    [
        dict(num_convs=1),
        dict(num_convs=2, kernel_sizes=(3, 5), strides=(1, 2)),
        dict(strides=(2, 1, 2), stem_stride=4),
    ],
)
def test_ablation_options(norm, act, convs):
    layer = stem(norm_cfg=norm, act_cfg=act, **convs)
    x = torch.randn(2, 3, 32, 32)
    assert layer(x).shape == (2, 20, 4, 4)
    assert layer.proj.kernel_size[0] * convs.get('stem_stride', 2) == 8


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(stride=4), 'stride must equal'),
        (dict(padding=1), 'padding be 0'),
        (dict(dilation=2), 'dilation 1'),
        (dict(num_convs=0), 'num_convs'),
        (dict(kernel_sizes=(7, 3)), 'kernel_sizes has 2 entries'),
        (dict(kernel_sizes=(7, 3, 4)), 'odd'),
        (dict(strides=(2, 2, 1)), 'multiply to stem_stride=2'),
        (dict(norm_cfg=[dict(type='BN')]), 'norm_cfg has 1 entries'),
        (dict(stem_stride=3), 'patch size'),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ScaledReLUConvStem(**{**STEM, **options})


def test_patch_embed_from_a_dict():
    layer = ScaledReLUPatchEmbed(
        embed_dims=20,
        kernel_size=8,
        bias=False,
        input_size=30,
        norm_cfg=dict(type='LN'),
        stem_cfg=dict(hidden=12, num_convs=2),
    )
    tokens, size = layer(torch.randn(2, 3, 30, 44))
    assert tokens.shape == (2, 24, 20) and size == (4, 6) and layer.init_out_size == (4, 4)
    assert layer.projection.proj.bias is None and len(layer.projection.conv) == 6
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 24), atol=1e-5, rtol=0)


# --- the hook -------------------------------------------------------------------------------------------------------


def test_similarity_against_a_loop():
    tokens = torch.randn(2, 5, 3)
    pairs = [
        torch.cosine_similarity(tokens[b, i], tokens[b, j], dim=0)
        for b in range(2)
        for i in range(5)
        for j in range(5)
        if i != j
    ]
    torch.testing.assert_close(token_similarity(tokens), torch.stack(pairs).mean())
    assert token_similarity(tokens[:, :1].expand(2, 5, 3)).item() == pytest.approx(1)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = tiny_vit('mmextra.ScaledReLUConvStem')


def test_hook_logs_at_its_interval():
    from types import SimpleNamespace

    from mmengine.logging import MessageHub

    hub = MessageHub('test_stem_diversity')
    runner = SimpleNamespace(model=Classifier(), message_hub=hub, iter=0)
    hook = HOOKS.build(dict(type='mmextra.StemDiversityHook', interval=2))
    hook.before_train(runner)
    logged = []
    for loss in (1.0, float('nan'), 1.0, 1.0):
        hook.before_train_iter(runner, runner.iter)
        x = torch.randn(2, 3, 32, 32)
        runner.model.backbone(x)
        hook.after_train_iter(runner, runner.iter, outputs=dict(loss=torch.tensor(loss)))
        logged.append({k: v.current() for k, v in hub.log_scalars.items()})
        runner.iter += 1
    hook.after_train(runner)
    assert logged[0] == {}
    assert logged[1]['train/nonfinite'] == 0.5 and logged[3]['train/nonfinite'] == 0
    assert logged[2] == logged[1]
    with torch.no_grad():
        embed = runner.model.backbone.patch_embed
        assert not embed._forward_hooks
        embed.train()
        expected = token_similarity(
            embed(x)[0]
        ).item()  # batch statistics: the same as in that iteration
    assert logged[3]['train/stem_similarity'] == pytest.approx(expected, abs=1e-5)


class BreakFirstIteration(Hook):
    """The loss that the later hooks see is not a number in the first iteration."""

    priority = 'VERY_HIGH'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 0:
            outputs['loss'] = torch.tensor(float('nan'))


def test_log_has_the_fraction_since_its_last_entry(tmp_path):
    """mmengine averages what has `loss` in its name over the last ten entries."""
    import json

    model = classifier(dict(type='VisionTransformer', arch=ARCH, img_size=32, patch_size=8))
    hooks = [dict(type='mmextra.StemDiversityHook', interval=1)]
    runner = classification_runner(model, tmp_path, hooks)
    runner.register_hook(BreakFirstIteration())
    runner.train()
    (log,) = tmp_path.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    fractions = [line['nonfinite'] for line in lines if 'stem_similarity' in line]
    assert fractions == [1, 0, 0, 0]


def test_hook_names_the_candidates_for_a_wrong_module():
    from types import SimpleNamespace

    with pytest.raises(ValueError, match='backbone.patch_embed'):
        StemDiversityHook(module='stem').before_train(SimpleNamespace(model=Classifier()))


@pytest.mark.parametrize(
    'losses, window, margin, spikes',
    [
        ([2.0, 1.8, 2.2, 1.6], 20, 0.5, 0),
        ([2.0, 2.6, 2.4, 2.4], 20, 0.5, 1),  # 2.6 against 2.0
        ([2.0, 2.6, 2.4, 2.4], 20, 0.05, 3),  # then 2.4 against 2.3, and against 2.33
        ([1.0, 5.0, 5.0, 5.0], 1, 0.5, 1),  # the mean of one: only the leap itself
        ([1.0, 5.0, 5.0, 5.0], 20, 0.5, 3),
        ([float('nan'), 1.0, float('inf'), 1.2], 20, 0.5, 2),
    ],
)
def test_loss_spikes(losses, window, margin, spikes):
    from types import SimpleNamespace

    from mmengine.logging import MessageHub

    hub = MessageHub(f'test_loss_spikes_{losses}_{window}_{margin}')
    runner = SimpleNamespace(message_hub=hub)
    hook = LossSpikeHook(window, margin)
    for i, loss in enumerate(losses):
        hook.after_train_iter(runner, i, outputs=dict(loss=torch.tensor(loss)))
    hook.after_val_epoch(runner)
    assert hub.get_scalar('val/spikes').current() == spikes


def test_loss_spikes_are_logged_with_the_metrics(tmp_path):
    """The number so far, not a mean over the validations: hence no `loss` in its name."""
    import json

    model = classifier(dict(type='VisionTransformer', arch=ARCH, img_size=32, patch_size=8))
    hook = dict(type='mmextra.LossSpikeHook', margin=-100.0)  # every iteration but the first
    classification_runner(model, tmp_path, [hook]).train()
    (log,) = tmp_path.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line['spikes'] for line in lines if 'spikes' in line] == [1, 3]


def test_a_mean_of_no_losses_is_refused():
    with pytest.raises(ValueError, match='window must be at least 1, got 0'):
        LossSpikeHook(window=0)
