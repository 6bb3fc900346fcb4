"""H-GKD: nothing of a masked cell reaches the student, and the weights that come out are stock ones."""

import math
import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmpretrain.models.backbones import ResNet
from mmpretrain.models.utils.sparse_modules import SparseHelper
from tiny_detectors import plain_config_dumps  # noqa: F401  the fixture
from torch import nn
from training import ROOT, assert_equal_weights, losses_of, train, weights

from mmextra.distill import hgkd
from mmextra.distill.hgkd import TokenDistillHead, UNetTokenDecoder, spread, visible_cells
from mmextra.engine.checkpoint import read_checkpoint
from mmextra.registry import MODELS

SIDE = 64
BN = dict(type='SparseBatchNorm2d')
ARCH = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48)
PIXELS = dict(mean=[120.0, 115.0, 110.0], std=[60.0, 61.0, 62.0], to_rgb=True)


def vit(kind='VisionTransformer', **kwargs):
    return dict(
        type=kind, **{**dict(arch=ARCH, img_size=SIDE, patch_size=16, out_type='featmap'), **kwargs}
    )


def sparse_resnet(**kwargs):
    defaults = dict(depth=18, stem_channels=4, base_channels=4, out_indices=(0, 1, 2, 3))
    return dict(type='SparseResNet', norm_cfg=BN, **{**defaults, **kwargs})


CONVNEXT = dict(arch=dict(depths=[1, 1, 1, 1], channels=[4, 8, 16, 32]), out_indices=(0, 1, 2, 3))
SPARSE_CONVNEXT = dict(type='SparseConvNeXt', gap_before_output=False, **CONVNEXT)

DECODER = dict(width=16, sparse_norm_cfg=BN, norm_cfg=dict(type='BN'))


def config(**kwargs):
    defaults = dict(
        backbone=sparse_resnet(),
        teacher=vit(),
        decoder=DECODER,
        input_size=SIDE,
        mask_ratio=0.5,
        data_preprocessor=PIXELS,
    )
    return dict(type='mmextra.HGKD', **{**defaults, **kwargs})


TINY = dict(
    HGKD={k: v for k, v in config().items() if k != 'type'},
    UNetTokenDecoder=dict(in_channels=[4, 8], out_channels=6, token_stride=2, **DECODER),
    TokenDistillHead=dict(),
)


def build(**kwargs):
    torch.manual_seed(0)
    model = MODELS.build(ConfigDict(config(**kwargs), _scope_='mmpretrain'))
    model.init_weights()
    return model


def images(batch=2, side=SIDE, seed=1):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def cells_of(*rows):
    """Visible cells of 2x2 from one string an image, ``'1001'``."""
    return torch.tensor([[int(c) for c in row] for row in rows]).bool().view(-1, 1, 2, 2)


ACTIVE = cells_of('1000', '0110')


def predict(model, inputs, active=ACTIVE):
    """The encoder's maps and the predicted tokens."""
    with visible_cells(active):
        maps = model.encode(inputs, active)
        return maps, model.neck(maps, active)


# What the student sees.


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('garbage', [1e3, float('nan'), float('inf')])
def test_nothing_of_a_masked_cell_gets_through(training, garbage):
    model = build().train(training)
    inputs = images()
    other = torch.where(spread(ACTIVE, 32), inputs, torch.full_like(inputs, garbage))
    maps, tokens = predict(model, inputs)
    again, others = predict(model, other)
    assert all(torch.equal(a, b) for a, b in zip(maps, again)) and torch.equal(tokens, others)


def test_without_masking_the_input_the_stem_would_leak():
    """The check can fail: its 7x7 windows reach into the neighbouring cell, of a sparse net as of a dense one."""
    inputs = images()
    other = torch.where(spread(ACTIVE, 32), inputs, inputs + 1)
    for backbone in (build().backbone, ResNet(18, stem_channels=4, base_channels=4)):
        backbone.eval()
        with visible_cells(ACTIVE), torch.no_grad():
            a, b = (backbone(x)[0] for x in (inputs, other))
        visible = spread(ACTIVE, a.shape[-1] // 2).expand_as(a)
        assert not torch.equal(a[visible], b[visible])


@pytest.mark.parametrize('backbone', [sparse_resnet(), SPARSE_CONVNEXT], ids=['ResNet', 'ConvNeXt'])
def test_maps_are_zero_where_masked(backbone):
    model = build(backbone=backbone).train()
    maps, tokens = predict(model, images())
    assert [m.shape[-1] for m in maps] == [16, 8, 4, 2] and tokens.shape == (2, 24, 4, 4)
    for m in maps:
        visible = spread(ACTIVE, m.shape[-1] // 2).expand_as(m)
        assert not m[~visible].any() and m[visible].abs().sum() > 0


def test_with_all_cells_visible_it_is_the_dense_network():
    model = build(mask_ratio=0.0)
    dense = ResNet(18, stem_channels=4, base_channels=4, out_indices=(0, 1, 2, 3))
    for mode in (True, False):
        dense.load_state_dict(model.backbone.state_dict())
        model.train(mode), dense.train(mode)
        maps, _ = predict(model, images(), torch.ones(2, 1, 2, 2).bool())
        for a, b, c in zip(maps, dense(images()), model(images(), mode='tensor')):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(c, b, rtol=1e-4, atol=1e-5)


def test_norms_take_statistics_of_visible_positions_alone():
    """One step of a running mean, position by position."""
    model = build().train()
    inputs, seen = images(), []
    model.backbone.conv1.register_forward_hook(lambda _, __, out: seen.append(out))
    predict(model, inputs)
    side = seen[0].shape[-1]
    values = [
        seen[0][b, :, y, x]
        for b in range(2)
        for y in range(side)
        for x in range(side)
        if ACTIVE[b, 0, y * 2 // side, x * 2 // side]
    ]
    assert len(values) == 3 * (side // 2) ** 2
    mean = torch.stack(values).mean(0)
    torch.testing.assert_close(model.backbone.bn1.running_mean, 0.1 * mean)


def test_cells_are_forgotten_after_a_step_even_if_it_fails(monkeypatch):
    model = build()
    model.loss(images())
    assert SparseHelper._cur_active is None
    model.extract_feat(images())
    assert SparseHelper._cur_active is None
    monkeypatch.setattr(model, 'teacher_tokens', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.loss(images())
    assert SparseHelper._cur_active is None


@pytest.mark.parametrize(
    'ratio, side, visible', [(0.6, 224, 20), (0.0, 64, 4), (0.5, 64, 2), (0.75, 64, 1)]
)
def test_number_of_visible_cells(ratio, side, visible):
    model = build(mask_ratio=ratio, input_size=side, teacher=vit(img_size=side))
    active = model.sample_cells(torch.Size([5, 3, side, side]), 'cpu')
    assert active.shape == (5, 1, side // 32, side // 32) and active.dtype == torch.bool
    assert active.flatten(1).sum(1).tolist() == [visible] * 5


def test_processes_draw_masks_of_their_own(monkeypatch):
    model, drawn = build(input_size=224, teacher=vit(img_size=224)), []
    monkeypatch.setattr(
        type(model),
        'sample_cells',
        lambda self, shape, device, generator: (
            drawn.append(torch.rand(9, generator=generator)) or 1 / 0
        ),
    )
    for rank in (0, 0, 1):
        monkeypatch.setattr(hgkd, 'get_rank', lambda rank=rank: rank)
        torch.manual_seed(3)
        with pytest.raises(ZeroDivisionError):
            model.loss(images(side=224))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


# Sizes at full scale.


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def test_shapes_and_parameters_of_resnet50():
    model = build(
        backbone=dict(type='SparseResNet', depth=50, out_indices=(0, 1, 2, 3), norm_cfg=BN),
        teacher=vit(arch=dict(ARCH, embed_dims=768), img_size=224),
        decoder=dict(DECODER, width=512),
        input_size=224,
        mask_ratio=0.6,
    ).eval()
    neck = model.neck
    assert count(model.backbone) == 23_508_032
    assert count(neck.projections) == 4_146_112 and count(neck.norms) == 7_680
    assert sum(t.numel() for t in neck.mask_tokens) == 3_840
    assert count(neck.ups) == 10_153_472 and count(neck.to_tokens) == 787_200
    assert count(neck, model.head) == 15_098_304
    active = model.sample_cells(torch.Size([1, 3, 224, 224]), 'cpu')
    with torch.no_grad():
        maps, tokens = predict(model, images(1, 224), active)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (256, 56, 56),
        (512, 28, 28),
        (1024, 14, 14),
        (2048, 7, 7),
    ]
    assert tokens.shape == (1, 768, 14, 14)
    assert [up.upsample.in_channels for up in neck.ups] == [512, 256, 128]


@pytest.mark.parametrize(
    'options, grid, stride',
    [
        (dict(teacher=vit(patch_size=8)), 8, 2),
        (dict(teacher=vit(patch_size=32)), 2, 8),
        (dict(teacher=vit(img_size=56, patch_size=14), teacher_size=56), 4, 4),
        (
            dict(
                backbone=sparse_resnet(
                    num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2)
                ),
                downsample_ratio=16,
                teacher=vit(patch_size=8),
            ),
            8,
            2,
        ),
    ],
)
def test_other_grids(options, grid, stride):
    model = build(**options).train()
    assert model.teacher_grid == grid and model.neck.to_tokens.stride == (stride, stride)
    losses = model.loss(images())
    sum(losses.values()).backward()
    assert all(torch.isfinite(v) and v > 0 for v in losses.values())
    without = [k for k, p in model.named_parameters() if p.grad is None]
    assert not without, f'DDP would wait for these: {without}'


# The decoder.


def test_decoder_equals_the_definition():
    """Step by step, in eval mode: norm, token, projection; up, add; patches to tokens."""
    model = build().eval()
    neck = model.neck
    for token in neck.mask_tokens:
        nn.init.normal_(token)
    with torch.no_grad():
        maps, got = predict(model, images())
        x = None
        for i, m in enumerate(maps[::-1]):
            norm, token = neck.norms[i], neck.mask_tokens[i][0, :, 0, 0]
            filled = torch.empty_like(m)
            side = m.shape[-1]
            for b in range(2):
                for r in range(side):
                    for c in range(side):
                        seen = ACTIVE[b, 0, r * 2 // side, c * 2 // side]
                        normed = (m[b, :, r, c] - norm.running_mean) / (
                            norm.running_var + norm.eps
                        ).sqrt() * norm.weight + norm.bias
                        filled[b, :, r, c] = normed if seen else token
            d = neck.projections[i](filled)
            assert d.shape[1] == 16 // 2**i
            x = d if x is None else neck.ups[i - 1](x) + d
        head = neck.to_tokens
        patches = F.unfold(x, head.kernel_size, stride=head.stride)  # (B, C*k*k, g*g)
        expected = head.weight.flatten(1) @ patches + head.bias[:, None]
    torch.testing.assert_close(got, expected.view_as(got), rtol=1e-4, atol=1e-5)


def test_first_projection_is_left_out_where_widths_agree():
    decoder = UNetTokenDecoder([4, 16], 6, 2, **DECODER)
    assert isinstance(decoder.projections[0], nn.Identity)
    kernels = [p.kernel_size for p in UNetTokenDecoder([4, 8], 6, 2, **DECODER).projections]
    assert kernels == [(1, 1), (3, 3)]


# The teacher and the target.


def test_teacher_is_frozen_and_not_saved():
    model = build().train()
    assert model.teacher_tokens(images(), ACTIVE).requires_grad is False
    before = weights(model.teacher)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sum(model.loss(images()).values()).backward()
    optimizer.step()
    assert_equal_weights(before, weights(model.teacher))
    assert not model.teacher.training and not any(m.training for m in model.teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    assert not any('teacher' in k for k in model.state_dict())
    assert {k.partition('.')[0] for k in model.state_dict()} == {'backbone', 'neck'}


def test_teacher_moves_with_the_model():
    model = build().to(torch.float64)
    assert {p.dtype for p in model.teacher.parameters()} == {torch.float64}


def test_double_precision_is_kept():
    pred, tokens = torch.randn(2, 1, 6, 4, 4, dtype=torch.float64)
    losses = TokenDistillHead()(pred, tokens, torch.ones(1, 1, 2, 2, dtype=torch.bool))
    assert TokenDistillHead.target(tokens).dtype == torch.float64
    assert all(v.dtype == torch.float64 for v in losses.values())


def test_targets_are_normalised_token_by_token():
    tokens = 5 + 3 * torch.randn(2, 24, 4, 4)
    target = TokenDistillHead.target(tokens)
    for b in range(2):
        for r in range(4):
            token, got = tokens[b, :, r, 2], target[b, :, r, 2]
            expected = (token - token.mean()) / token.std(unbiased=False)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert target.mean(1).abs().max() < 1e-5
    torch.testing.assert_close(target.var(1, unbiased=False), torch.ones(2, 4, 4))


def test_teacher_sees_its_own_pixels_and_size():
    bgr = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
    model = build(
        teacher=vit(img_size=128, patch_size=32), teacher_size=128, teacher_preprocessor=bgr
    )
    raw = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    inputs = model.data_preprocessor(dict(inputs=raw, data_samples=None))['inputs']
    seen = []
    model.teacher.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.teacher_tokens(inputs, ACTIVE)
    expected = raw.float() - torch.tensor(bgr['mean']).view(1, 3, 1, 1)
    expected = F.interpolate(expected, scale_factor=2, mode='bilinear', align_corners=False)
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-2)


def test_visible_view_is_what_mae_encodes():
    """The stock forward, made to keep the same patches."""
    model = build(teacher=vit('MAEViT'), teacher_view='visible')
    tokens = model.teacher_tokens(images(), cells_of('0110', '1001'))
    kept = spread(cells_of('0110', '1001'), 2).flatten(1)
    index = torch.stack([row.nonzero()[:, 0] for row in kept])

    def keep(x, _):
        return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1])), None, None

    model.teacher.random_masking = keep
    with torch.no_grad():
        expected = model.teacher(images())[0][:, 1:]
    flat = tokens.flatten(2).transpose(1, 2)
    torch.testing.assert_close(flat.gather(1, index[..., None].expand(-1, -1, 24)), expected)
    assert not flat[~kept].any()
    full = build(teacher=vit('MAEViT'))
    assert set(full.loss(images())) == {'loss_masked', 'loss_visible'}
    assert set(model.loss(images())) == {'loss_visible'}
    # What is masked cannot change what the teacher says.
    other = torch.where(spread(ACTIVE[:1], 32), images(1), images(1) + 9)
    model.len_keep = 1
    torch.testing.assert_close(*(model.teacher_tokens(x, ACTIVE[:1]) for x in (images(1), other)))


# The loss.


def slow_loss(pred, tokens, active, masked_weight, visible_weight):
    found = {True: [], False: []}
    side = pred.shape[-1]
    for b in range(len(pred)):
        for r in range(side):
            for c in range(side):
                y = tokens[b, :, r, c]
                y = (y - y.mean()) / (y.var(unbiased=False) + 1e-6).sqrt()
                d = (pred[b, :, r, c] - y).abs()
                value = torch.where(d < 1, 0.5 * d**2, d - 0.5).mean()
                found[bool(active[b, 0, r * 2 // side, c * 2 // side])].append(value)
    means = {k: sum(v) / len(v) for k, v in found.items()}
    return masked_weight * means[False], visible_weight * means[True]


@pytest.mark.parametrize('side', [2, 4, 6])
def test_loss_equals_the_slow_loop(side):
    pred, tokens = torch.randn(2, 2, 5, side, side).double()
    got = TokenDistillHead(0.7, 1.3)(pred, tokens, ACTIVE)
    masked, visible = slow_loss(pred, tokens, ACTIVE, 0.7, 1.3)
    torch.testing.assert_close(got['loss_masked'], masked)
    torch.testing.assert_close(got['loss_visible'], visible)


def test_loss_at_the_target_is_zero():
    tokens = torch.randn(2, 5, 4, 4)
    losses = TokenDistillHead()(TokenDistillHead.target(tokens), tokens, ACTIVE)
    assert all(v == 0 for v in losses.values())


def test_swapping_weights_with_the_complementary_mask_changes_nothing():
    pred, tokens = torch.randn(2, 2, 5, 4, 4)
    one = TokenDistillHead(0.3, 2.0)(pred, tokens, ACTIVE)
    two = TokenDistillHead(2.0, 0.3)(pred, tokens, ~ACTIVE)
    torch.testing.assert_close(sum(one.values()), sum(two.values()))


def test_loss_terms_without_weight_or_tokens():
    pred, tokens = torch.randn(2, 2, 5, 4, 4)
    assert set(TokenDistillHead(1.0, 0.0)(pred, tokens, ACTIVE)) == {'loss_masked'}
    assert set(TokenDistillHead(0.0, 1.0)(pred, tokens, ACTIVE)) == {'loss_visible'}
    everything = TokenDistillHead()(pred, tokens, torch.ones_like(ACTIVE))
    assert everything['loss_masked'] == 0 and everything['loss_visible'] > 0
    small = TokenDistillHead(beta=1e-6)(pred, tokens, ACTIVE)['loss_visible']
    assert small > TokenDistillHead()(pred, tokens, ACTIVE)['loss_visible']  # absolute, not squared


def test_visible_loss_reaches_the_mask_tokens():
    """Masked cells lie in the receptive field of visible tokens."""
    model = build(masked_weight=0.0).train()
    losses = model.loss(images())
    assert set(losses) == {'loss_visible'}
    losses['loss_visible'].backward()
    assert all(t.grad.abs().sum() > 0 for t in model.neck.mask_tokens)


def test_pixels_beside_tokens():
    model = build(pixel_weight=0.5, decoder=dict(DECODER, width=32)).train()
    losses = model.loss(images())
    assert set(losses) == {'loss_masked', 'loss_visible', 'loss_pixel'}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    torch.manual_seed(5)
    active = model.sample_cells(images().shape, 'cpu')
    model.eval()
    with visible_cells(active):
        dense = model.neck.densify(model.encode(images(), active), active)
        pixels = model.pixel_decoder(dense)
    assert pixels.shape == images().shape
    assert not any('pixel' in k for k in build().state_dict())


def test_one_visible_cell_in_the_batch():
    """Its deepest map has one position: no batch statistics, the running ones serve."""
    model = build(mask_ratio=0.75).train()
    before = weights(model.backbone)
    losses = model.loss(images(1))
    assert all(torch.isfinite(v) for v in losses.values())
    assert_equal_weights(before, weights(model.backbone))
    assert model.backbone.bn1.training and model.neck.norms[0].training
    assert all(torch.isfinite(v) for v in model.loss(images(2)).values())
    assert model.backbone.bn1.running_mean.any()


# Bad input.


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(mask_ratio=1.0), 'mask_ratio must leave at least one of 4'),
        (dict(mask_ratio=0.9), 'mask_ratio must leave'),
        (dict(mask_ratio=-0.1), 'mask_ratio must leave'),
        (dict(teacher_view='masked'), "teacher_view must be one of .*got 'masked'"),
        (dict(teacher_view='visible'), "needs a teacher of type 'MAEViT'.*VisionTransformer"),
        (
            dict(teacher_view='visible', teacher=vit('MAEViT', img_size=128)),
            'img_size=64, got MAEViT with 128',
        ),
        (
            dict(teacher_view='visible', teacher=vit('MAEViT'), visible_weight=0.0),
            'there is nothing to learn',
        ),
        (dict(masked_weight=0.0, visible_weight=0.0), 'there is nothing to learn'),
        (dict(downsample_ratio=16), 'stride of the deepest stage of the encoder, 32'),
        (dict(input_size=80), 'divide input_size'),
        (dict(teacher=vit(img_size=70, patch_size=14)), 'multiple of the teacher.s patches of 14'),
        (
            dict(teacher=vit(img_size=96, patch_size=32), teacher_size=96),
            'multiple of the 2 cells of the mask',
        ),
        (dict(decoder=dict(DECODER, width=20)), 'width must be a multiple of 8'),
        (dict(pixel_weight=1.0), 'make it a multiple of 32, or set pixel_weight=0; got 16'),
        (dict(backbone=sparse_resnet(with_cp=True)), 'set backbone.with_cp=False'),
        (dict(teacher=dict(type='ResNet', depth=18)), 'must be a VisionTransformer'),
        (dict(backbone=dict(type='MobileNetV2')), 'needs a sparse encoder'),
        (
            dict(backbone=dict(type='SparseConvNeXt', arch='atto', out_indices=(0, 1, 2, 3))),
            'gap_before_output=False',
        ),
        (dict(backbone=sparse_resnet(out_indices=(0, 1, 2))), r'out_indices=\(0, 1, 2, 3\), got'),
        (dict(backbone=dict(SPARSE_CONVNEXT, out_indices=(0, 2, 3))), 'joins successive maps'),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_bad_images():
    model = build()
    for inputs, message in (
        (images(side=96), 'images must be square, of side 64; got 96x96'),
        (images()[..., :32], 'got 64x32'),
        ([images()], "collate_fn=dict\\(type='default_collate'\\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.loss(inputs)
    with pytest.raises(ValueError, match='side k \\* 32; got 80x80'):
        model.extract_feat(images(side=80))
    assert model.extract_feat(images(side=96))[-1].shape[-1] == 3


def test_a_teacher_that_gives_no_map():
    with pytest.raises(ValueError, match="set teacher.out_type='featmap'"):
        build(teacher=vit(out_type='avg_featmap')).loss(images())


# Checkpoints.


@pytest.mark.parametrize('kind', ['VisionTransformer', 'MAEViT'])
def test_teacher_checkpoints_are_loaded_strictly(kind, tmp_path):
    """Into MAEViT too, whose own initialisation draws some weights after the file is read."""
    source = build(teacher=vit('MAEViT')).teacher
    state = {f'backbone.{k}': torch.randn_like(v) for k, v in source.state_dict().items()}
    path = tmp_path / 'mae.pth'
    torch.save(dict(state_dict=dict(state, **{'neck.weight': torch.zeros(2)})), path)

    def load(prefix='backbone.', **kwargs):
        init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix=prefix)
        return build(teacher=vit(kind, init_cfg=init_cfg, **kwargs)).teacher

    for key, value in load().state_dict().items():
        assert torch.equal(value, state[f'backbone.{key}'])
    with pytest.raises(ValueError, match='missing .*Its keys begin with backbone, neck: give the'):
        load(prefix='model.')
    with pytest.raises(ValueError, match='left over layers.1'):
        load(arch=dict(ARCH, num_layers=1))
    with pytest.raises(FileNotFoundError, match='there is no checkpoint'):
        path = tmp_path / 'nowhere.pth'
        load()


def test_official_teacher_checkpoints(tmp_path, monkeypatch):
    from mmextra.engine.checkpoint import _LAYOUTS

    monkeypatch.setitem(_LAYOUTS, 'made_up', lambda s: {f'backbone.{k}': v for k, v in s.items()})
    state = {k: torch.randn_like(v) for k, v in build().teacher.state_dict().items()}
    torch.save(state, tmp_path / 'official.pth')
    init_cfg = dict(
        type='mmextra.OfficialCheckpoint',
        checkpoint=str(tmp_path / 'official.pth'),
        layout='made_up',
    )
    for kind in ('VisionTransformer', 'MAEViT'):
        teacher = build(teacher=vit(kind, init_cfg=init_cfg)).teacher
        assert all(torch.equal(v, state[k]) for k, v in teacher.state_dict().items())


def test_a_teacher_without_weights_is_warned_about(monkeypatch):
    messages = []
    monkeypatch.setattr(hgkd, 'print_log', lambda message, *_, **__: messages.append(message))
    build()
    assert any('its weights are random' in m for m in messages)


@pytest.mark.parametrize('host', ['mmpretrain', 'mmdet', 'mmseg'])
def test_exported_weights_fit_stock_backbones(host, tmp_path):
    sys.path.insert(0, str(ROOT / 'tools'))
    from export_backbone import main

    model = build().eval()
    torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=1)), tmp_path / 'hgkd.pth')
    assert main([str(tmp_path / 'hgkd.pth'), str(tmp_path / 'r18.pth')]) == 0
    exported = read_checkpoint(str(tmp_path / 'r18.pth'))['state_dict']
    assert exported.keys() == model.backbone.state_dict().keys()
    backbone = dict(
        type='ResNet', depth=18, stem_channels=4, base_channels=4, out_indices=(0, 1, 2, 3)
    )
    dense = MODELS.build(dict(backbone, _scope_=host))
    dense.load_state_dict(exported)  # every key
    dense.eval()
    for a, b in zip(dense(images()), model(images(), mode='tensor')):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    # As configs do it, from the checkpoint of the pre-training as it is.
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'hgkd.pth'), prefix='backbone.')
    stock = MODELS.build(dict(backbone, init_cfg=init_cfg, _scope_=host))
    stock.init_weights()
    for key, value in exported.items():
        assert torch.equal(stock.state_dict()[key], value), key


def test_exported_convnext_fits_the_stock_one():
    """All but the norms that the stock one puts after its stages, which the pre-training has not."""
    model = build(backbone=SPARSE_CONVNEXT).eval()
    with torch.no_grad():
        for p in model.backbone.parameters():
            p.add_(torch.rand_like(p))  # the scales of its blocks begin at 1e-6
    dense = MODELS.build(
        dict(CONVNEXT, type='ConvNeXt', gap_before_final_norm=False, _scope_='mmpretrain')
    )
    loaded = dense.load_state_dict(model.backbone.state_dict(), strict=False)
    assert not loaded.unexpected_keys
    after = [f'norm{i}.{kind}' for i in range(4) for kind in ('weight', 'bias')]
    assert sorted(loaded.missing_keys) == sorted(after)
    for i in range(4):
        setattr(dense, f'norm{i}', nn.Identity())
    dense.eval()
    for a, b in zip(dense(images()), model(images(), mode='tensor')):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_export_refuses_what_holds_no_backbone(tmp_path, capsys):
    sys.path.insert(0, str(ROOT / 'tools'))
    from export_backbone import main

    torch.save(dict(state_dict={'head.weight': torch.zeros(1)}), tmp_path / 'x.pth')
    assert main([str(tmp_path / 'x.pth'), str(tmp_path / 'y.pth')]) == 1
    assert "no key begins with 'backbone.'; they begin with: head" in capsys.readouterr().err
    assert main([str(tmp_path / 'nowhere.pth'), str(tmp_path / 'y.pth')]) == 1


# Training.


def pretraining_run(root, work_dir, batch=4, **model):
    """Two epochs of two iterations on drawn images, masks seeded by epoch."""
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(SIDE, SIDE)),
        dict(type='PackInputs'),
    ]
    return Config(
        dict(
            default_scope='mmpretrain',
            model=config(**model),
            work_dir=str(work_dir),
            train_dataloader=dict(
                batch_size=batch,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=True),
                collate_fn=dict(type='default_collate'),
                dataset=dict(
                    type='CustomDataset',
                    data_root=str(root),
                    data_prefix='train',
                    with_label=False,
                    pipeline=steps,
                ),
            ),
            train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=2),
            optim_wrapper=dict(
                optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
                paramwise_cfg=dict(custom_keys={'mask_token': dict(decay_mult=0.0)}),
            ),
            default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
            custom_hooks=[dict(type='mmextra.SeedEachEpochHook')],
            log_level='WARNING',
            randomness=dict(seed=0),
        )
    )


@pytest.fixture(scope='module')
def teacher_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('teacher') / 'vit.pth'
    model = build()
    torch.save({f'backbone.{k}': v for k, v in model.teacher.state_dict().items()}, path)
    return dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')


def test_resume_equals_an_unbroken_run(shapes_root, tmp_path, teacher_file):
    cfg = pretraining_run(shapes_root, tmp_path / 'a', teacher=vit(init_cfg=teacher_file))
    unbroken = train(cfg)
    assert all(math.isfinite(v) for v in losses_of(unbroken)['loss_masked'])
    groups = unbroken.optim_wrapper.optimizer.param_groups
    assert sum(g['weight_decay'] == 0 for g in groups) == 4  # the mask tokens
    cfg.merge_from_dict(
        dict(work_dir=str(tmp_path / 'b'), resume=True, load_from=str(tmp_path / 'a/epoch_1.pth'))
    )
    resumed = train(cfg)
    assert resumed.iter == unbroken.iter == 4
    assert_equal_weights(weights(unbroken.model), weights(resumed.model))


def test_two_processes(shapes_root, tmp_path, teacher_file):
    """One image, one visible cell each: no statistics at the deepest map, and no process waits for another."""
    cfg = pretraining_run(
        shapes_root, tmp_path / 'two', 1, teacher=vit(init_cfg=teacher_file), mask_ratio=0.75
    )
    path = tmp_path / 'two.py'
    cfg.dump(path)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2']
    command += [f'--master_port={port}', str(ROOT / 'tools/train.py'), str(path)]
    environment = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    done = subprocess.run(
        [*command, '--launcher', 'pytorch'],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    state = read_checkpoint(str(tmp_path / 'two/epoch_2.pth'))['state_dict']
    assert all(torch.isfinite(v).all() for v in state.values())
