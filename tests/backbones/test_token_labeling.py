"""Token labeling: the authors' numbers, the target against loops, the pipeline, LV-ViT."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import fuse_conv_bn
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import BaseModule
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS as HOST
from mmpretrain.structures import DataSample
from torch.utils.flop_counter import FlopCounterMode

from mmextra.backbones.token_labeling import (
    LVViT,
    LVViTBlock,
    LVViTPyramid,
    MixToken,
    SoftTargetCrossEntropy,
    TokenLabelClsHead,
    TokenLabelDataPreprocessor,
    TokenLabelLoss,
    dense_scores,
    one_hot_target,
    swap_box,
    token_hits,
    token_label_target,
    top_classes,
)
from mmextra.backbones.token_labeling import transforms as T
from mmextra.registry import HOOKS, MODELS, TRANSFORMS

CONFIGS = Path(__file__).parents[2] / 'configs' / 'token_labeling'
ARCH = dict(embed_dims=24, num_layers=2, num_heads=3, skip_lam=2.0, stem_channels=8)
TINY = {
    'LVViT': dict(arch=ARCH, img_size=32, patch_size=8, out_indices=(0, 1), out_type='featmap'),
    'LVViTPyramid': dict(in_channels=8, out_channels=(4, 4, 4, 4)),
    'LoadTokenLabel': dict(data_root='labels'),
    'MixToken': dict(),
    'SoftTargetCrossEntropy': dict(),
    'TokenAccuracyHook': dict(),
    'TokenLabelClsHead': dict(num_classes=5, in_channels=24),
    'TokenLabelDataPreprocessor': dict(num_classes=5, label_size=4),
    'TokenLabelLoss': dict(),
    'TokenLabelRandAugment': dict(policies='timm_increasing', num_policies=2, magnitude_level=9),
    'TokenLabelRandomFlip': dict(prob=0.5),
    'TokenLabelRandomResizedCrop': dict(scale=32),
}


def labels(batch=3, num_classes=7, k=3, side=6):
    """Label maps with different classes in each cell."""
    scores = torch.randn(batch, num_classes, side, side) * 3
    values, ids = scores.topk(k, dim=1)
    return torch.stack((values, ids.float()), 1)


def classifier(
    num_classes=5, img_size=32, side=4, backbone=None, head=None, init_cfg=None, **preprocessor
):
    """A tiny classifier with all that token labeling needs."""
    DefaultScope.get_instance('mmpretrain', scope_name='mmpretrain')
    return HOST.build(
        dict(
            type='ImageClassifier',
            init_cfg=init_cfg,
            backbone=dict(
                type='mmextra.LVViT',
                **{
                    **dict(arch=ARCH, img_size=img_size, patch_size=img_size // side),
                    **dict(mix_token=True, out_type='dense'),
                    **(backbone or {}),
                },
            ),
            head=dict(
                type='mmextra.TokenLabelClsHead',
                num_classes=num_classes,
                in_channels=24,
                **(head or {}),
            ),
            data_preprocessor=dict(
                type='mmextra.TokenLabelDataPreprocessor',
                num_classes=num_classes,
                label_size=side,
                **preprocessor,
            ),
        )
    )


def batch(size=3, num_classes=5, img_size=32, with_map=True):
    samples = []
    for i in range(size):
        sample = DataSample().set_gt_label(i % num_classes)
        if with_map:
            sample.set_field(labels(1, num_classes)[0].numpy(), 'token_label')
            sample.set_field(np.array([0.1, 0.2, 0.5, 0.7], np.float32), 'crop_coords')
        samples.append(sample)
    return dict(inputs=torch.randn(size, 3, img_size, img_size), data_samples=samples)


# --- the authors' numbers ------------------------------------------------------------------------


@pytest.mark.golden('token_labeling', 'label_affine*')
def test_label_affine(case):
    label, args = case.inputs['label'].numpy(), case.meta['args']
    out = dict(
        rotate=T.rotate(label, args['rotate_degrees']),
        shear_x=T.shear_x(label, args['shear']),
        shear_y=T.shear_y(label, args['shear']),
        translate_x=T.translate_x(label, args['translate']),
        translate_y=T.translate_y(label, args['translate']),
    )
    case.check({k: torch.from_numpy(v) for k, v in out.items()}, rtol=0, atol=0)


@pytest.mark.golden('token_labeling', 'target_generation*')
def test_target_generation(case):
    label, crop, gt = (case.inputs[k] for k in ('label_top5', 'crop', 'gt'))
    num_classes, smoothing = case.meta['num_classes'], case.meta['smoothing']
    size = case.meta['label_size']

    def target(label_size=size, **options):
        return token_label_target(label, crop, gt, num_classes, label_size, smoothing, **options)

    case.check(
        dict(
            target=target(coord_order='published'),
            target_xy_fixed=target(),
            target_lam03=target(coord_order='published', lam=0.3),
            target_size1=target(1, coord_order='published'),
            onehot=one_hot_target(gt, num_classes, smoothing),
        ),
        atol=1e-5,
    )


@pytest.mark.golden('token_labeling', 'loss_token_label*')
def test_token_label_loss(case):
    kwargs = {k: v for k, v in case.meta['kwargs'].items() if k in ('dense_weight', 'cls_weight')}
    loss = TokenLabelLoss(**kwargs, with_gt='GT' in case.meta['cls'])
    target, box = case.inputs['target'], case.inputs['box'].tolist()
    out, grads = {}, {}
    for name, given in (('box', box), ('nobox', (0, 0, 0, 0))):
        cls_score, aux_score = (
            case.inputs[k].clone().requires_grad_() for k in ('cls_logits', 'aux_logits')
        )
        out[name] = loss(cls_score, aux_score, target, given)
        out[name].backward()
        grads.update({f'out_{name}': cls_score.grad, f'aux_{name}': aux_score.grad})
        out[f'plain2d_{name}'] = loss(cls_score, aux_score, target[:, :, 1], given)
    case.check(out, grads, rtol=1e-5, atol=1e-6)


@pytest.mark.golden('token_labeling', 'lvvit_block*')
def test_lvvit_block(case):
    kind = dict(MHABlock='mha', FFNBlock='ffn').get(case.meta['cls'].rpartition('.')[2], 'tr')
    block = case.load(LVViTBlock(**{'mlp_ratio': 4.0, **case.meta['kwargs']}, kind=kind))
    case.check(dict(y=block.eval()(case.inputs['x'])))


STEMS = {'4_2': 64, '4_2_128': 128}


@pytest.mark.golden('token_labeling', 'lvvit_tiny*')
def test_lvvit_tiny(case):
    upstream = dict(mlp_ratio=4.0, embed_dim=768, depth=12, num_heads=12, num_classes=1000)
    options = {**upstream, **case.meta['kwargs']}
    renamed = dict(in_chans='in_channels')
    same = ('img_size', 'patch_size', 'mlp_ratio', 'head_dim', 'qkv_bias', 'qk_scale', 'order')
    arch = dict(
        embed_dims=options['embed_dim'],
        num_layers=len(options.get('order') or ()) or options['depth'],
        num_heads=options['num_heads'],
        skip_lam=options.get('skip_lam', 1.0),
        stem_channels=STEMS.get(options.get('p_emb', '4_2'), 0),
    )
    DefaultScope.get_instance('mmpretrain', scope_name='mmpretrain')
    model = HOST.build(
        dict(
            type='ImageClassifier',
            backbone=dict(
                type='mmextra.LVViT',
                arch=arch,
                mix_token=True,
                out_type='dense',
                **{renamed.get(k, k): v for k, v in options.items() if k in (*same, *renamed)},
            ),
            head=dict(
                type='mmextra.TokenLabelClsHead',
                num_classes=options['num_classes'],
                in_channels=options['embed_dim'],
                with_aux=options.get('return_dense', False),
            ),
        )
    )
    case.load(model, layout='token_labeling')
    backbone, head, x = model.backbone, model.head, case.inputs['x']
    model.eval()
    seen = {}
    backbone.patch_embed.register_forward_hook(lambda m, i, out: seen.update(patch=out))
    backbone.norm.register_forward_hook(lambda m, i, out: seen.update(features=out))
    with torch.no_grad():
        seen['logits'] = model(x, mode='tensor')
        out = dict(seen)
        out['cls'], out['aux'], _ = head.scores(backbone(x))
        if 'box' in case.inputs:
            box = tuple(case.inputs['box'].tolist())
            backbone.mix_token.sample_box = lambda height, width: box
            backbone.training = True  # and nothing inside of it
            out['mix_cls'], out['mix_aux'], _ = head.scores(backbone(x))
    case.check(out)


# --- the numbers of the paper --------------------------------------------------------------------

SIZES = [
    ('t', 224, 8_534_720, 2.87),
    ('s', 224, 26_151_824, 6.55),
    ('m', 224, 55_830_544, 12.68),
    ('l', 224, 150_021_968, 34.64),
    ('s', 384, 26_297_744, 21.90),
    ('m', 384, 56_025_104, 41.64),
    ('l', 448, 150_473_552, 155.1),
]


@pytest.mark.parametrize('arch, size, parameters, gmacs', SIZES)
def test_parameters_and_macs(arch, size, parameters, gmacs):
    with torch.device('meta'):
        backbone = LVViT(arch, img_size=size, out_type='dense').eval().requires_grad_(False)
        head = TokenLabelClsHead(1000, backbone.embed_dims).requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            head(backbone(torch.empty(1, 3, size, size)))
    assert sum(p.numel() for m in (backbone, head) for p in m.parameters()) == parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.005)


# --- targets -------------------------------------------------------------------------------------


def looped_target(label, crop, gt, num_classes, size, smoothing, coord_order):
    """The target of one image: dense map, RoIAlign and softmax, one step after another."""
    _, k, height, width = label.shape
    dense = np.zeros((num_classes, height, width))
    for j in range(k):
        for r in range(height):
            for c in range(width):
                dense[int(label[1, j, r, c]), r, c] = label[0, j, r, c]
    y, x, h, w = crop
    if coord_order == 'published':
        y, x, h, w = x, y, w, h
    y1, x1, y2, x2 = (
        v * side - 0.5 for v, side in ((y, height), (x, width), (y + h, height), (x + w, width))
    )

    def bilinear(plane, y, x):
        if y < -1 or y > height or x < -1 or x > width:
            return 0.0
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        y0, x0 = int(y), int(x)
        y3, x3, fy, fx = min(y0 + 1, height - 1), min(x0 + 1, width - 1), y - y0, x - x0
        top = plane[y0, x0] * (1 - fx) + plane[y0, x3] * fx
        return top * (1 - fy) + (plane[y3, x0] * (1 - fx) + plane[y3, x3] * fx) * fy

    columns = []
    for n in (1, size):
        bin_h, bin_w = max(y2 - y1, 1) / n, max(x2 - x1, 1) / n
        points_h, points_w = math.ceil(max(y2 - y1, 1) / n), math.ceil(max(x2 - x1, 1) / n)
        for i in range(n):
            for j in range(n):
                samples = [
                    [
                        bilinear(
                            plane,
                            y1 + (i + (p + 0.5) / points_h) * bin_h,
                            x1 + (j + (q + 0.5) / points_w) * bin_w,
                        )
                        for p in range(points_h)
                        for q in range(points_w)
                    ]
                    for plane in dense
                ]
                logits = np.mean(samples, 1)
                share = np.exp(logits) / np.exp(logits).sum()
                columns.append(share * (1 - smoothing + smoothing / num_classes))
    one_hot = np.zeros(num_classes)
    one_hot[gt] = 1 - smoothing
    return np.stack([one_hot, *columns], 1) + smoothing / num_classes


@pytest.mark.parametrize('coord_order', ['xy', 'published'])
@pytest.mark.parametrize('size', [1, 3])
def test_target_equals_loops(coord_order, size):
    label = labels(3)
    crop = torch.tensor([[0.1, 0.3, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0], [0.7, 0.1, 0.25, 0.9]])
    gt = torch.tensor([0, 6, 3])
    target = token_label_target(label, crop, gt, 7, size, 0.1, coord_order)
    for b in range(3):
        expected = looped_target(
            label[b].numpy(), crop[b].tolist(), gt[b], 7, size, 0.1, coord_order
        )
        expected = torch.from_numpy(expected)[:, : 2 + (size * size if size > 1 else 0)]
        torch.testing.assert_close(target[b].double(), expected, rtol=1e-5, atol=1e-6)
        alone = token_label_target(
            label[b : b + 1], crop[b : b + 1], gt[b : b + 1], 7, size, 0.1, coord_order
        )
        torch.testing.assert_close(alone[0], target[b], rtol=1e-6, atol=1e-7)


def test_column_sums():
    target = token_label_target(labels(2, 1000), torch.rand(2, 4) / 2, torch.tensor([3, 999]), 1000)
    sums = target.sum(1)
    torch.testing.assert_close(sums[:, 0], torch.ones(2))
    torch.testing.assert_close(sums[:, 1:], torch.full((2, 197), 1.0001))


def test_constant_map_under_the_full_crop():
    label = labels(2, side=1).expand(-1, -1, -1, 6, 6)
    crop = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(2, 4)
    target = token_label_target(label, crop, torch.tensor([0, 1]), 7, 4)
    torch.testing.assert_close(target[..., 2:], target[..., 1:2].expand(-1, -1, 16))


@pytest.mark.parametrize('coord_order, right', [('xy', 4), ('published', 2)])
def test_left_half_of_a_map_of_two_classes(coord_order, right):
    """Class 4 left, class 2 right, and the crop takes the left half."""
    label = torch.full((1, 2, 1, 8, 8), 9.0)
    label[:, 1, :, :, :4], label[:, 1, :, :, 4:] = 4, 2
    crop = torch.tensor([[0.0, 0.0, 1.0, 0.5]])
    target = token_label_target(label, crop, torch.tensor([0]), 5, 4, coord_order=coord_order)
    winners = target[0, :, 2:].argmax(0).view(4, 4)
    assert (winners[:, 0] == 4).all()
    assert (winners[:3, 2] == right).all()


def test_published_order_needs_square_maps():
    label = labels(1)[..., :4]
    crop = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert token_label_target(label, crop, torch.tensor([0]), 7, 2).shape == (1, 7, 6)
    with pytest.raises(ValueError, match='square'):
        token_label_target(label, crop, torch.tensor([0]), 7, 2, coord_order='published')


# --- mixing tokens -------------------------------------------------------------------------------


def test_swap_box_equals_loops():
    x = torch.randn(3, 4, 5, 2)
    swapped = swap_box(x, (1, 0, 3, 4))
    for b in range(3):
        for r in range(4):
            for c in range(5):
                inside = 1 <= r < 3 and c < 4
                assert torch.equal(swapped[b, r, c], x[2 - b if inside else b, r, c])
    assert torch.equal(swap_box(swapped, (1, 0, 3, 4)), x)
    assert swap_box(x, (2, 2, 2, 5)) is x


def test_mix_token_draws_the_box_of_cutmix(monkeypatch):
    monkeypatch.setattr(np.random, 'beta', lambda a, b: 0.75)
    monkeypatch.setattr(np.random, 'randint', lambda n: n - 2)
    # Half of each side, 7 of 14 and 5 of 10, around 12 and 8, and clipped.
    assert MixToken().sample_box(14, 10) == (9, 6, 14, 10)
    monkeypatch.setattr(np.random, 'beta', lambda a, b: 1.0)
    assert MixToken().sample_box(14, 10) == (12, 8, 12, 8)


def test_mix_on_a_finer_grid_and_unmix(monkeypatch):
    mix = MixToken()
    monkeypatch.setattr(mix, 'sample_box', lambda height, width: (0, 1, height - 1, 2))
    x = torch.arange(2.0)[:, None, None, None].expand(2, 1, 8, 6)
    mixed, box = mix.mix(x, scale=2)
    assert box == (0, 1, 3, 2)
    expected = torch.zeros(8, 6)
    expected[:6, 2:4] = 1
    assert torch.equal(mixed[0, 0], expected)
    assert torch.equal(mixed[1, 0], 1 - expected)
    coarse = mixed[:, :, ::2, ::2].permute(0, 2, 3, 1)
    assert torch.equal(mix.unmix(coarse, box)[1], torch.ones(4, 3, 1))


def test_mix_token_refuses_a_degenerate_distribution():
    with pytest.raises(ValueError, match='alpha'):
        MixToken(alpha=0)


# --- losses --------------------------------------------------------------------------------------


def looped_loss(cls_score, aux_score, target, box, dense_weight, cls_weight, with_gt):
    size, tokens, _ = aux_score.shape
    share = (box[2] - box[0]) * (box[3] - box[1]) / tokens
    cls_targets = []
    for b in range(size):
        gt, label = target[b, :, 0], target[b, :, 1]
        ratio = (0.5 if gt.argmax() == label.argmax() else 0.9) if with_gt else 1
        cls_targets.append(ratio * label + (1 - ratio) * gt)
    loss = 0
    for b in range(size):
        t = (1 - share) * cls_targets[b] + share * cls_targets[size - 1 - b]
        loss = loss - cls_weight / size * (t * cls_score[b].log_softmax(0)).sum()
        for n in range(tokens):
            t = target[b, :, 2 + n]
            weight = dense_weight / size / tokens
            loss = loss - weight * (t * aux_score[b, n].log_softmax(0)).sum()
    return loss


@pytest.mark.parametrize('with_gt', [False, True])
def test_loss_equals_loops(with_gt):
    cls_score, aux_score = torch.randn(3, 5).double(), torch.randn(3, 6, 5).double()
    target, box = torch.rand(3, 5, 8).double(), (0, 1, 2, 3)
    loss = TokenLabelLoss(0.5, 2.0, with_gt)
    expected = looped_loss(cls_score, aux_score, target, box, 0.5, 2.0, with_gt)
    torch.testing.assert_close(
        loss(cls_score, aux_score, target, box), expected, rtol=1e-13, atol=0
    )
    # Target and logits reversed together: the mirrored batch.
    mirrored = loss(cls_score.flip(0), aux_score.flip(0), target.flip(0), box)
    torch.testing.assert_close(mirrored, expected)
    empty = loss(cls_score, aux_score, target, (1, 1, 1, 3))
    torch.testing.assert_close(empty, loss(cls_score, aux_score, target))
    assert not torch.isclose(empty, expected)
    given = cls_score.requires_grad_(), aux_score.requires_grad_()
    assert torch.autograd.gradcheck(lambda c, a: loss(c, a, target, box), given)


def test_loss_of_uniform_logits():
    crop, gt = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(3, 4), torch.tensor([0, 1, 2])
    target = token_label_target(labels(3), crop, gt, 7, 2, smoothing=0.2)
    loss = TokenLabelLoss(dense_weight=0.5, cls_weight=3.0)
    value = loss(torch.zeros(3, 7), torch.zeros(3, 4, 7), target)
    assert value == pytest.approx(3.5 * math.log(7) * (1 + 0.2 / 7), rel=1e-5)


def test_loss_with_one_label_for_the_image():
    cls_score, aux_score, target = torch.randn(3, 5), torch.randn(3, 4, 5), torch.rand(3, 5)
    loss = TokenLabelLoss(dense_weight=0.5)
    tokens = sum(F.cross_entropy(aux_score[:, n], target) for n in range(4)) / 4
    expected = F.cross_entropy(cls_score, target) + 0.5 * tokens
    torch.testing.assert_close(loss(cls_score, aux_score, target), expected)
    relabelled = torch.stack((torch.rand(3, 5), target), 2)
    torch.testing.assert_close(loss(cls_score, aux_score, relabelled), expected)
    torch.testing.assert_close(loss(cls_score, None, target), F.cross_entropy(cls_score, target))


def test_loss_without_dense_weight_ignores_the_tokens():
    aux_score = torch.randn(2, 4, 5, requires_grad=True)
    TokenLabelLoss(dense_weight=0.0)(torch.randn(2, 5), aux_score, torch.rand(2, 5)).backward()
    assert aux_score.grad.abs().max() == 0  # zero, not None: distributed training does not wait


def test_loss_names_the_option_when_token_counts_differ():
    with pytest.raises(ValueError, match='label_size'):
        TokenLabelLoss()(torch.randn(2, 5), torch.randn(2, 9, 5), torch.rand(2, 5, 6))


def test_a_classifier_of_patch_tokens_that_is_not_trained_has_no_say():
    cfg = Config.fromfile(CONFIGS / 'lvvit-small-no-token-label_8xb128_in1k.py').model.head
    head = MODELS.build({**cfg, 'num_classes': 5, 'in_channels': 8})
    head.init_weights()
    cls_token = torch.randn(2, 8)
    feats = ([torch.randn(2, 8, 3, 3), cls_token, ()],)
    assert cfg.loss.dense_weight == 0
    torch.testing.assert_close(head(feats), head.fc(cls_token))


def test_soft_target_cross_entropy():
    score, target = torch.randn(4, 5).double().requires_grad_(), torch.rand(4, 5).double()
    loss = SoftTargetCrossEntropy(loss_weight=2.0)
    expected = -2 * sum((target[b] * score[b].log_softmax(0)).sum() for b in range(4)) / 4
    torch.testing.assert_close(loss(score, target), expected)
    torch.testing.assert_close(loss(score, target, avg_factor=8), expected / 2)
    torch.testing.assert_close(loss(score, torch.stack((1 - target, target), 2)), expected)
    indices = torch.tensor([0, 4, 2, 2])
    torch.testing.assert_close(loss(score, indices), loss(score, F.one_hot(indices, 5).to(score)))
    assert torch.autograd.gradcheck(lambda s: loss(s, target), score)
    with pytest.raises(ValueError, match='num_classes'):
        loss(score, target[:, :3])


# --- head ----------------------------------------------------------------------------------------


def test_head_adds_the_best_token_of_each_class():
    head = TokenLabelClsHead(5, 8, aux_test_weight=0.5)
    patches, cls_token = torch.randn(2, 8, 3, 4), torch.randn(2, 8)
    feats = ([patches, cls_token, (0, 0, 0, 0)],)
    cls_score, aux_score, _ = head.scores(feats)
    for b in range(2):
        tokens = [head.aux_fc(patches[b, :, r, c]) for r in range(3) for c in range(4)]
        best = torch.stack([max(token[k] for token in tokens) for k in range(5)])
        torch.testing.assert_close(head(feats)[b], head.fc(cls_token[b]) + best / 2)
    assert aux_score.shape == (2, 12, 5)
    assert torch.equal(head.pre_logits(feats), cls_token)
    predictions = head.predict(feats)
    torch.testing.assert_close(predictions[0].pred_score, head(feats).softmax(1)[0])


def test_head_gives_mixed_tokens_back_to_their_images():
    """Two images of one colour each: every token's logits are those of its own image."""
    head = TokenLabelClsHead(2, 2)
    torch.nn.init.eye_(head.aux_fc.weight)
    torch.nn.init.zeros_(head.aux_fc.bias)
    own = torch.eye(2)[:, :, None, None].expand(2, 2, 4, 4)
    mixed, box = MixToken().mix(own)
    while box[0] >= box[2] or box[1] >= box[3]:
        mixed, box = MixToken().mix(own)
    assert not torch.equal(mixed, own)
    _, aux_score, _ = head.scores(([mixed, torch.zeros(2, 2), box],))
    assert torch.equal(aux_score, torch.eye(2)[:, None].expand(2, 16, 2))


def test_head_without_patch_tokens():
    head = TokenLabelClsHead(5, 8, with_aux=False)
    x = torch.randn(2, 8)
    torch.testing.assert_close(head((x,)), head.fc(x))
    samples = [DataSample().set_gt_label(1), DataSample().set_gt_label(4)]
    expected = F.cross_entropy(head.fc(x), torch.tensor([1, 4]))
    torch.testing.assert_close(head.loss((x,), samples)['loss'], expected)
    with pytest.raises(ValueError, match='out_type'):
        TokenLabelClsHead(5, 8)((x,))
    with pytest.raises(ValueError, match='with_aux'):
        head([[torch.randn(2, 8, 2, 2), x, (0, 0, 1, 1)]])
    with pytest.raises(ValueError, match='num_classes'):
        TokenLabelClsHead(0, 8)


@MODELS.register_module('_MeanOfMaps', force=True)
class MeanOfMaps(BaseModule):
    def __init__(self, loss_name=None):
        super().__init__()
        if loss_name:
            self.loss_name = loss_name

    def forward(self, attn_maps):
        return sum(attn_map.mean() for attn_map in attn_maps)


def test_head_feeds_further_losses_with_the_attention_maps():
    losses = [dict(type='_MeanOfMaps', loss_name='loss_cos'), *[dict(type='_MeanOfMaps')] * 2]
    head = TokenLabelClsHead(5, 8, aux_losses=losses)
    maps = [torch.full((2, 1, 4, 4), 0.25), torch.full((2, 1, 4, 4), 0.5)]
    dense = [torch.randn(2, 8, 2, 2), torch.randn(2, 8), (0, 0, 0, 0)]
    samples = [DataSample().set_gt_label(1), DataSample().set_gt_label(4)]
    out = head.loss(([*dense, maps],), samples)
    assert out['loss_cos'] == out['loss_aux'] == out['loss_aux2'] == 0.75
    assert set(out) == {'loss', 'loss_cos', 'loss_aux', 'loss_aux2'}
    assert head(([*dense, maps],)).shape == (2, 5)
    with pytest.raises(ValueError, match='attention maps'):
        head.loss((dense,), samples)


# --- accuracy of the patch tokens -----------------------------------------------------------------


def test_hits_equal_loops():
    scores, target = torch.randn(3, 4, 5), (3 * torch.randn(3, 5, 4)).softmax(1)
    right = total = 0
    for b in range(3):
        for n in range(4):
            for k in range(5):
                if target[b, k, n] > 0.5:
                    total += 1
                    right += int(all(scores[b, n, k] >= other for other in scores[b, n]))
    assert token_hits(scores, target).tolist() == [right, total] and 0 < right < total < 12


class SlotClassifier(torch.nn.Module):
    """Says of every token what the labels of its image say, but of the first row class 0."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes  # (B, H, W)

    def forward(self, x):
        scores = F.one_hot(self.classes, 5).float()
        scores[:, 0] = F.one_hot(torch.zeros_like(self.classes[:, 0]), 5).float()
        return scores


def test_hook_logs_the_accuracy_of_the_patch_tokens():
    """Half of the tokens show something, and the classifier is wrong in the first of four rows."""
    from types import SimpleNamespace

    from mmengine.logging import MessageHub

    hub, model = MessageHub('test_token_accuracy'), classifier().eval()
    runner = SimpleNamespace(model=model, message_hub=hub)
    hook = HOOKS.build(dict(type='mmextra.TokenAccuracyHook'))
    classes = torch.randint(1, 5, (2, 4, 4))
    shown = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(2, 4, 4)  # in the two columns on the left
    data = batch(2)
    data['inputs'] = list(data['inputs'])
    for i, sample in enumerate(data['data_samples']):
        label = torch.stack((30 * shown[i], classes[i].float()))[:, None]
        label = label.repeat_interleave(4, -1).repeat_interleave(4, -2)
        sample.set_field(label.numpy(), 'token_label')
    model.head.aux_fc = SlotClassifier(classes)
    hook.before_val(runner)
    for i in range(2):
        outputs = model.val_step(data)
        hook.after_val_iter(runner, i, data, outputs)
    hook.after_val_epoch(runner)
    assert hub.get_scalar('val/token_accuracy').current() == pytest.approx(75)
    assert not model.head.aux_fc._forward_hooks

    hook.before_val(runner)
    for sample in data['data_samples']:
        del sample.token_label
    with pytest.raises(ValueError, match='needs a token_label in every data sample'):
        hook.after_val_iter(runner, 0, data, model.val_step(data))
    model.head.aux_fc = None
    with pytest.raises(ValueError, match='ImageClassifier has no TokenLabelClsHead'):
        hook.before_val(runner)


# --- data preprocessor ---------------------------------------------------------------------------


@pytest.mark.parametrize('size', [1, 3])
def test_training_step(size):
    model = classifier()
    model.init_weights()
    model.train()
    data = model.data_preprocessor(batch(size), training=True)
    sample = data['data_samples'][0]
    assert sample.gt_token_score.shape == (5, 18)
    expected = token_label_target(
        torch.from_numpy(sample.token_label)[None],
        torch.tensor([[0.1, 0.2, 0.5, 0.7]]),
        torch.tensor([0]),
        5,
        4,
    )
    torch.testing.assert_close(sample.gt_token_score, expected[0])
    loss = model(**data, mode='loss')['loss']
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_training_step_in_mixed_precision(dtype):
    model = classifier().train()
    data = model.data_preprocessor(batch(2), training=True)
    with torch.autocast('cpu', dtype=dtype):
        loss = model(**data, mode='loss')['loss']
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


def test_loss_of_the_model_is_the_loss_of_its_parts():
    model = classifier(
        backbone=dict(mix_token=False),
        head=dict(loss=dict(type='mmextra.TokenLabelLoss', dense_weight=0.3)),
    ).eval()
    data = model.data_preprocessor(batch(2), training=True)
    patches, cls_token, _ = model.backbone(data['inputs'])[-1]
    target = torch.stack([sample.gt_token_score for sample in data['data_samples']])
    head = model.head
    expected = SoftTargetCrossEntropy()(head.fc(cls_token), target[:, :, 1])
    for n in range(16):
        token = patches.flatten(2)[:, :, n]
        loss = SoftTargetCrossEntropy()(head.aux_fc(token), target[:, :, 2 + n])
        expected = expected + 0.3 / 16 * loss
    torch.testing.assert_close(model(**data, mode='loss')['loss'], expected)


def test_preprocessor_without_label_maps():
    data = TokenLabelDataPreprocessor(5)(batch(2, with_map=False), training=True)
    torch.testing.assert_close(
        data['data_samples'][1].gt_score, torch.tensor([0.02, 0.92, 0.02, 0.02, 0.02])
    )
    data = TokenLabelDataPreprocessor(5)(batch(2), training=False)
    assert 'gt_token_score' not in data['data_samples'][0]
    assert 'gt_score' not in data['data_samples'][0]
    model = classifier()
    data = model.data_preprocessor(batch(2, with_map=False), training=True)
    assert model(**data, mode='loss')['loss'].isfinite()


def test_preprocessor_leaves_the_hosts_mixed_targets_alone():
    augments = dict(augments=[dict(type='mmpretrain.Mixup', alpha=0.8)])
    data = batch(2, with_map=False)
    preprocessor = TokenLabelDataPreprocessor(5, batch_augments=augments)
    np.random.seed(0)
    scores = [s.gt_score for s in preprocessor(data, training=True)['data_samples']]
    assert all(score.sum() == pytest.approx(1) for score in scores)
    with pytest.raises(ValueError, match='batch_augments'):
        preprocessor(batch(2), training=True)


def test_preprocessor_mixes_images_and_targets(monkeypatch):
    monkeypatch.setattr(np.random, 'beta', lambda a, b: 0.25)
    data = batch(3)
    inputs = data['inputs'].clone()
    plain = TokenLabelDataPreprocessor(5, 4)(data, training=True)
    target = torch.stack([s.gt_token_score for s in plain['data_samples']])
    mixed = TokenLabelDataPreprocessor(5, 4, mixup_alpha=0.8)(data, training=True)
    torch.testing.assert_close(mixed['inputs'], 0.25 * inputs + 0.75 * inputs.flip(0))
    torch.testing.assert_close(
        torch.stack([s.gt_token_score for s in mixed['data_samples']]),
        0.25 * target + 0.75 * target.flip(0),
    )


@pytest.mark.parametrize(
    'options, name',
    [
        (dict(coord_order='yx'), 'coord_order'),
        (dict(label_size=0), 'label_size'),
        (dict(smoothing=1.0), 'smoothing'),
        (dict(mixup_alpha=-1), 'mixup_alpha'),
    ],
)
def test_preprocessor_refuses_bad_options(options, name):
    with pytest.raises(ValueError, match=name):
        TokenLabelDataPreprocessor(5, **options)


def test_preprocessor_refuses_bad_label_maps():
    preprocessor = TokenLabelDataPreprocessor(5, 4)
    data = batch(2)
    del data['data_samples'][1].token_label
    with pytest.raises(ValueError, match='1 of 2'):
        preprocessor(data, training=True)
    data = batch(2)
    data['data_samples'][0].token_label[1] = 5
    with pytest.raises(ValueError, match='num_classes is 5'):
        preprocessor(data, training=True)
    data = batch(1)
    data['data_samples'][0].token_label = data['data_samples'][0].token_label[:1]
    with pytest.raises(ValueError, match=r'\(2, k, H, W\)'):
        preprocessor(data, training=True)


# --- pipeline ------------------------------------------------------------------------------------


def image_and_label(side=33):
    """An image whose pixels say which class the label map has there."""
    ids = np.repeat(np.repeat(np.arange(9).reshape(3, 3), side // 3, 0), side // 3, 1)
    image = np.repeat((ids * 20 + 40).astype(np.uint8)[:, :, None], 3, 2)
    label = np.stack((np.full((1, side, side), 5.0), ids[None])).astype(np.float32)
    return dict(img=image, token_label=label, img_path='a/b.jpg')


def agreement(results):
    """Share of the cells, among those inside of the original image, whose pixel says the same."""
    label, image = results['token_label'], results['img'][..., 0].astype(float)
    inside = label[0, 0] > 0
    assert 0.3 < inside.mean() <= 1
    return (np.abs(image - (label[1, 0] * 20 + 40)) < 1)[inside].mean()


@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
def test_flip_keeps_image_and_label_together(direction):
    results = image_and_label()
    before = results['token_label'].copy()
    flip = TRANSFORMS.build(dict(type='TokenLabelRandomFlip', prob=1.0, direction=direction))
    results = flip(results)
    assert agreement(results) == 1 and not np.array_equal(before, results['token_label'])
    assert TRANSFORMS.build(dict(type='TokenLabelRandomFlip', prob=1.0))(dict(img=before[0, 0]))[
        'flip'
    ]


@pytest.mark.parametrize('sign', [-1, 1])
@pytest.mark.parametrize(
    'policy',
    [
        dict(type='Rotate', magnitude_range=(0, 30)),
        dict(type='Shear', magnitude_range=(0, 0.3), direction='horizontal'),
        dict(type='Shear', magnitude_range=(0, 0.3), direction='vertical'),
        dict(type='Translate', magnitude_range=(0, 0.4), direction='horizontal'),
        dict(type='Translate', magnitude_range=(0, 0.4), direction='vertical'),
    ],
)
def test_rand_augment_keeps_image_and_label_together(policy, sign):
    """The image's own magnitude, and the image's own direction."""
    policy = dict(policy, prob=1.0, interpolation='nearest')
    policy['random_negative_prob'] = float(sign < 0)
    augment = T.TokenLabelRandAugment([policy], num_policies=1, magnitude_level=9)
    results = image_and_label()
    before = results['token_label'].copy()
    results = augment(results)
    moved = (results['token_label'] != before).mean()
    assert agreement(results) > 0.9 and moved > 0.05
    # With the label left where it was, the same measure fails.
    assert agreement(dict(results, token_label=before)) < 0.9


def test_rand_augment_draws_like_the_host():
    """Colours leave the label alone; without label map it is the host's transform."""
    np.random.seed(0)
    augment = T.TokenLabelRandAugment(
        [dict(type='Invert', prob=1.0)], num_policies=1, magnitude_level=9
    )
    results = image_and_label()
    before = results['token_label'].copy()
    after = augment(dict(results))
    assert np.array_equal(after['token_label'], before)
    assert np.array_equal(after['img'], 255 - results['img'])
    never = T.TokenLabelRandAugment(
        [dict(type='Rotate', angle=20, prob=0.0)], num_policies=2, magnitude_level=9
    )
    assert np.array_equal(never(dict(results))['token_label'], before)
    fixed = T.TokenLabelRandAugment(
        [dict(type='Rotate', angle=20, prob=1.0)], num_policies=1, magnitude_level=9
    )
    assert not np.array_equal(fixed(dict(results))['token_label'], before)
    del results['token_label']
    assert 'token_label' not in fixed(dict(results))


@pytest.mark.parametrize('interpolation', ['bicubic', 'random'])
def test_crop_is_recorded(interpolation):
    crop = TRANSFORMS.build(
        dict(type='TokenLabelRandomResizedCrop', scale=(20, 24), interpolation=interpolation)
    )
    seen = set()
    for seed in range(20):
        np.random.seed(seed)
        ramp = np.arange(40)[:, None] * 3.0 + np.zeros((40, 50))
        results = crop(dict(img=np.repeat(ramp[:, :, None], 3, 2).astype(np.uint8)))
        top, left, height, width = results['crop_coords'] * [40, 50, 40, 50]
        assert results['img'].shape == (20, 24, 3)
        assert 0 <= left and left + width <= 50.01 and 0 <= top and top + height <= 40.01
        assert results['img'].mean() / 3 == pytest.approx(top + (height - 1) / 2, abs=1.0)
        seen.add((round(float(top)), round(float(left))))
    assert len(seen) > 10
    assert crop.interpolation in ('bilinear', 'bicubic')


def test_order_of_the_pipeline_is_checked():
    crop = T.TokenLabelRandomResizedCrop(16)
    for late in (
        T.TokenLabelRandomFlip(prob=1.0),
        T.TokenLabelRandAugment([dict(type='Invert')], num_policies=1, magnitude_level=9),
    ):
        with pytest.raises(ValueError, match='before TokenLabelRandomResizedCrop'):
            late(crop(image_and_label()))


def test_pipeline_from_file_to_target(tmp_path):
    from PIL import Image

    (tmp_path / 'img' / 'n01').mkdir(parents=True)
    (tmp_path / 'lab' / 'n01').mkdir(parents=True)
    path = tmp_path / 'img' / 'n01' / 'x.y.png'
    Image.fromarray(np.random.randint(0, 255, (40, 48, 3), dtype=np.uint8)).save(path)
    label = labels(1, 9)[0].half()
    torch.save(label, tmp_path / 'lab' / 'n01' / 'x.pt')
    DefaultScope.get_instance('mmpretrain', scope_name='mmpretrain')
    pipeline = Compose(
        [
            dict(type='mmpretrain.LoadImageFromFile'),
            dict(type='mmextra.LoadTokenLabel', data_root=str(tmp_path / 'lab')),
            dict(type='mmextra.TokenLabelRandomFlip', prob=0.5),
            dict(
                type='mmextra.TokenLabelRandAugment',
                policies='timm_increasing',
                num_policies=2,
                magnitude_level=9,
                magnitude_std=0.5,
            ),
            dict(type='mmextra.TokenLabelRandomResizedCrop', scale=32, interpolation='random'),
            dict(type='mmpretrain.RandomErasing', erase_prob=1.0, mode='rand'),
            dict(type='mmpretrain.PackInputs', algorithm_keys=('token_label', 'crop_coords')),
        ]
    )
    packed = [pipeline(dict(img_path=str(path), gt_label=3)) for _ in range(3)]
    data = dict(
        inputs=[p['inputs'] for p in packed], data_samples=[p['data_samples'] for p in packed]
    )
    data = TokenLabelDataPreprocessor(9, 4)(data, training=True)
    assert data['data_samples'][2].gt_token_score.shape == (9, 18)


def test_label_files(tmp_path):
    (tmp_path / 'c').mkdir()
    results = dict(img_path='/images/c/a.b.JPEG')
    label = labels(1)[0]
    torch.save(label.half(), tmp_path / 'c' / 'a.pt')
    np.savez(tmp_path / 'c' / 'a.npz', values=label[0].numpy(), ids=label[1].long().numpy())
    for suffix, tolerance in (('.pt', 0.01), ('.npz', 0.0)):
        loaded = T.LoadTokenLabel(str(tmp_path), suffix)(dict(results))['token_label']
        assert loaded.dtype == np.float32
        np.testing.assert_allclose(loaded, label, atol=tolerance)
    with pytest.raises(FileNotFoundError, match='generate_token_label'):
        T.LoadTokenLabel(str(tmp_path))(dict(img_path='c/missing.JPEG'))
    with pytest.raises(ValueError, match='suffix'):
        T.LoadTokenLabel(str(tmp_path), '.pth')
    torch.save(label[0], tmp_path / 'c' / 'bad.pt')
    with pytest.raises(ValueError, match='must hold'):
        T.LoadTokenLabel(str(tmp_path))(dict(img_path='c/bad.jpg'))


# --- annotators ----------------------------------------------------------------------------------


def annotator(head=None, **backbone):
    DefaultScope.get_instance('mmpretrain', scope_name='mmpretrain')
    heads = dict(
        ResNet=dict(type='LinearClsHead', num_classes=7, in_channels=512),
        VisionTransformer=dict(type='VisionTransformerClsHead', num_classes=7, in_channels=24),
    )
    neck = dict(type='GlobalAveragePooling') if backbone['type'] == 'ResNet' else None
    head = head or heads[backbone['type']]
    model = HOST.build(dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head))
    model.init_weights()
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter)
    model.eval()
    return model


def test_convolutional_annotator():
    """The mean over places of the dense scores is the score of the image."""
    model, x = annotator(type='ResNet', depth=18), torch.randn(2, 3, 64, 96)
    scores = dense_scores(model, x)
    assert scores.shape == (2, 7, 2, 3)
    with torch.no_grad():
        torch.testing.assert_close(scores.mean((2, 3)), model(x, mode='tensor'))


def test_annotator_that_pools_before_its_last_norm():
    """Its norm and its classifier go to every place."""
    model = annotator(
        type='ConvNeXt',
        arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 16]),
        head=dict(type='LinearClsHead', num_classes=7, in_channels=16),
    )
    torch.nn.init.normal_(model.backbone.norm3.weight)
    maps, x = [], torch.randn(2, 3, 64, 96)
    model.backbone.stages[-1].register_forward_hook(lambda m, inputs, out: maps.append(out))
    scores = dense_scores(model, x)
    with torch.no_grad():
        expected = model.head.fc(model.backbone.norm3(maps[0]).permute(0, 2, 3, 1))
        assert model.backbone(x)[-1].shape == (2, 16), 'it pools as before'
    assert scores.shape == (2, 7, 2, 3)
    torch.testing.assert_close(scores.permute(0, 2, 3, 1), expected)


def test_annotators_with_more_than_one_layer_in_the_head():
    arch = dict(embed_dims=24, num_layers=1, num_heads=2, feedforward_channels=24)
    model = annotator(
        type='DistilledVisionTransformer',
        arch=arch,
        img_size=32,
        patch_size=8,
        head=dict(type='DeiTClsHead', num_classes=7, in_channels=24),
    )
    x = torch.randn(2, 3, 32, 32)
    model.backbone.out_type = 'featmap'
    with torch.no_grad():
        tokens, layers = model.backbone(x)[-1].flatten(2).mT, model.head.layers
        both = (layers.head(tokens) + layers.head_dist(tokens)) / 2
    model.backbone.out_type = 'cls_token'
    torch.testing.assert_close(dense_scores(model, x).flatten(2).mT, both)

    model = annotator(
        type='ResNet',
        depth=18,
        head=dict(type='StackedLinearClsHead', num_classes=7, in_channels=512, mid_channels=[9]),
    )
    with torch.no_grad():
        expected = model(x, mode='tensor')  # there is one place only
    torch.testing.assert_close(dense_scores(model, x)[:, :, 0, 0], expected)


def test_transformer_annotators():
    arch = dict(embed_dims=24, num_layers=1, num_heads=2, feedforward_channels=24)
    model = annotator(type='VisionTransformer', arch=arch, img_size=32, patch_size=8)
    x = torch.randn(2, 3, 32, 32)
    scores = dense_scores(model, x)
    assert scores.shape == (2, 7, 4, 4) and model.backbone.out_type == 'cls_token'
    model.backbone.out_type = 'raw'  # tokens with the class token in front
    torch.testing.assert_close(dense_scores(model, x), scores)
    model = annotator(
        type='VisionTransformer', arch=arch, img_size=32, patch_size=8, out_type='avg_featmap'
    )
    torch.nn.init.normal_(model.backbone.ln2.weight)
    seen = []
    model.backbone.ln1.register_forward_hook(lambda m, inputs, out: seen.append(out))
    scores = dense_scores(model, x)
    expected = model.head.layers(model.backbone.ln2(seen[0][:, 1:]))
    torch.testing.assert_close(scores.flatten(2).mT, expected)
    model = classifier().eval()
    with torch.no_grad():
        _, aux_score, _ = model.head.scores(model.backbone(x))
    torch.testing.assert_close(dense_scores(model, x).flatten(2).mT, aux_score)


def test_annotators_that_cannot_annotate():
    model = annotator(type='ResNet', depth=18)
    model.head.fc = None
    with pytest.raises(ValueError, match='linear classifier'):
        dense_scores(model, torch.randn(1, 3, 32, 32))
    model = classifier()
    model.backbone.forward = lambda x: (torch.randn(1, 24),)
    with pytest.raises(ValueError, match='out_type'):
        dense_scores(model, torch.randn(1, 3, 32, 32))
    model.backbone.forward = lambda x: (torch.randn(1, 25, 2, 2),)
    with pytest.raises(ValueError, match='maps of 25 channels, and TokenLabelClsHead takes 24'):
        dense_scores(model, torch.randn(1, 3, 32, 32))


def test_top_classes():
    scores = torch.randn(2, 9, 3, 4)
    first, second = top_classes(scores, k=2)
    assert first.shape == (2, 2, 3, 4) and first.dtype == torch.float16
    order = scores[1].argsort(0, descending=True)
    assert torch.equal(second[1].long(), order[:2])
    torch.testing.assert_close(second[0], scores[1].gather(0, order[:2]).half())
    assert top_classes(torch.randn(1, 3000, 1, 1))[0].dtype == torch.float32


def test_generate_token_label_tool(tmp_path):
    import importlib.util

    from PIL import Image

    root = Path(__file__).parents[2]
    spec = importlib.util.spec_from_file_location('tool', root / 'tools/generate_token_label.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    for name in ('a/0.x.png', 'a/1.png', 'b/2.png'):
        path = tmp_path / 'images' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.randint(0, 255, (20, 30, 3), dtype=np.uint8)).save(path)
    model = annotator(type='ResNet', depth=18)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'annotator.pth')
    Config(
        dict(
            default_scope='mmpretrain',
            model=dict(
                type='ImageClassifier',
                backbone=dict(type='ResNet', depth=18),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=7, in_channels=512),
                data_preprocessor=dict(mean=[128.0] * 3, std=[64.0] * 3, to_rgb=True),
            ),
        )
    ).dump(str(tmp_path / 'config.py'))
    arguments = [
        str(tmp_path / name) for name in ('config.py', 'annotator.pth', 'images', 'labels')
    ]
    tool.main([*arguments, '--size', '64', '--batch-size', '2', '--topk', '3', '--device', 'cpu'])
    results = dict(img_path=str(tmp_path / 'images/a/0.x.png'))
    label = T.LoadTokenLabel(str(tmp_path / 'labels'))(results)['token_label']
    image = Image.open(results['img_path']).convert('RGB').resize((64, 64), Image.BICUBIC)
    x = (torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() - 128) / 64
    torch.testing.assert_close(
        torch.from_numpy(label),
        top_classes(dense_scores(model, x), 3)[0].float(),
        rtol=0.01,
        atol=0.02,
    )
    assert len(list((tmp_path / 'labels').rglob('*.pt'))) == 3
    with pytest.raises(SystemExit):
        tool.main([*arguments[:2], str(tmp_path / 'labels'), str(tmp_path / 'x')])


# --- LV-ViT --------------------------------------------------------------------------------------


def lvvit(**options):
    torch.manual_seed(0)
    model = LVViT(**{**dict(arch=ARCH, img_size=32, patch_size=8), **options})
    model.init_weights()
    return model.eval()


def test_block_kinds_follow_the_formula():
    x, lam = torch.randn(2, 5, 24), 3.0
    for kind, branches in (('tr', 'both'), ('mha', 'attn'), ('ffn', 'mlp')):
        block = LVViTBlock(24, 4, head_dim=5, skip_lam=lam, kind=kind).eval()
        gain = 1 if kind == 'tr' else lam
        expected = x
        if branches != 'mlp':
            attn, z = block.attn, block.norm1(gain * x)
            qkv = attn.qkv(z).view(2, 5, 3, 4, 5)
            heads = [
                (5**-0.5 * qkv[:, :, 0, h] @ qkv[:, :, 1, h].mT).softmax(-1) @ qkv[:, :, 2, h]
                for h in range(4)
            ]
            expected = expected + attn.proj(torch.cat(heads, -1)) / lam
        if branches != 'attn':
            mlp, z = block.mlp, block.norm2(gain * expected)
            expected = expected + mlp.fc2(F.gelu(mlp.fc1(z))) / lam
        torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def test_the_hosts_feature_extractor_takes_images_apart():
    """Also of a model that is trained with mixed tokens; a box of numbers stopped it."""
    from mmpretrain.apis import FeatureExtractor

    model = classifier().eval()
    model._config = Config(
        dict(test_dataloader=dict(dataset=dict(pipeline=[dict(type='mmpretrain.PackInputs')])))
    )
    images = [np.random.randint(0, 255, (32, 32, 3), np.uint8) for _ in range(3)]
    found = FeatureExtractor(model)(images, batch_size=3)
    with torch.no_grad():
        x = torch.stack([torch.from_numpy(image.transpose(2, 0, 1)) for image in images])
        patches, cls_token, _ = model.backbone(x.float())[-1]
    for (one,), *expected in zip(found, patches, cls_token):
        torch.testing.assert_close(one[:2], expected)


def test_unknown_block_kind():
    with pytest.raises(ValueError, match='kind'):
        LVViTBlock(24, 4, kind='conv')


def test_stochastic_depth_grows_linearly():
    model = LVViT(arch=dict(ARCH, num_layers=5), drop_path_rate=0.2)
    rates = [getattr(block.drop_path, 'drop_prob', 0.0) for block in model.blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_order_of_blocks():
    model = lvvit(order=('mha', 'ffn'))
    assert model.blocks[0].mlp is None and model.blocks[1].attn is None
    assert model(torch.randn(1, 3, 32, 32))[-1].shape == (1, 24)


def test_output_types():
    x = torch.randn(2, 3, 32, 32)
    raw = lvvit(out_type='raw')(x)[0]
    assert raw.shape == (2, 17, 24)
    patches, cls_token, box = lvvit(out_type='dense')(x)[-1]
    torch.testing.assert_close(patches.flatten(2).mT, raw[:, 1:])
    torch.testing.assert_close(cls_token, raw[:, 0])
    assert box == ()
    torch.testing.assert_close(lvvit()(x)[0], raw[:, 0])
    torch.testing.assert_close(lvvit(out_type='avg_featmap')(x)[0], raw[:, 1:].mean(1))
    unnormed = lvvit(out_type='raw', final_norm=False)
    torch.testing.assert_close(unnormed.norm(unnormed(x)[0]), raw)
    assert not any(p.requires_grad for p in unnormed.norm.parameters())
    assert lvvit(arch=dict(ARCH, stem_channels=0))(x)[0].shape == (2, 24)


@torch.no_grad()
def test_sizes_that_are_no_whole_number_of_tokens():
    """Maps for dense prediction cover the image, padded with zeros; a classifier drops the rest."""
    x, model = torch.randn(1, 3, 33, 38), lvvit(out_type='featmap')
    assert model(x)[0].shape == (1, 24, 5, 5)
    torch.testing.assert_close(model(F.pad(x, (0, 2, 0, 7))), model(x))
    assert lvvit(out_type='dense')(x)[0][0].shape == (1, 24, 4, 4)


def test_norms_can_be_fused_for_inference():
    model, x = lvvit(), torch.randn(2, 3, 32, 32)
    for norm in (model.patch_embed.bn1, model.patch_embed.bn2, model.patch_embed.bn3):
        norm.running_mean.normal_(std=0.2)
        norm.running_var.uniform_(0.5, 1.5)
    fused = fuse_conv_bn(copy.deepcopy(model))
    with torch.no_grad():
        for mode in (fused, fused.eval()):
            torch.testing.assert_close(mode(x)[0], model(x)[0], rtol=1e-4, atol=1e-5)


def test_traces_for_any_batch_size():
    model, x = lvvit(), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        traced = torch.jit.trace(model, (x[:2],), check_trace=False)
        torch.testing.assert_close(traced(x)[0], model(x)[0], rtol=1e-4, atol=1e-5)


def test_tokens_are_mixed_in_training_only():
    model, x = lvvit(mix_token=True, out_type='dense'), torch.randn(2, 3, 32, 32)
    model.mix_token.sample_box = lambda height, width: (0, 0, 2, 3)
    assert model(x)[-1][2] == ()
    assert model.train()(x)[-1][2] == (0, 0, 2, 3)
    model.eval()
    plain = model(x)[-1]
    model.training = True
    model.mix_token.sample_box = lambda height, width: (2, 2, 2, 2)
    torch.testing.assert_close(model(x)[-1][:2], plain[:2])


def test_positions_of_a_checkpoint_of_another_size():
    small, large = lvvit(), lvvit(img_size=(64, 48))
    large.load_state_dict(small.state_dict())
    x = torch.randn(1, 3, 64, 48)
    torch.testing.assert_close(large(x)[0], small(x)[0])
    assert large.pos_embed.shape == (1, 49, 24)


@pytest.mark.parametrize(
    'options, name',
    [
        (dict(arch='xl'), 'arch'),
        (dict(arch=dict(embed_dims=8)), 'num_heads'),
        (dict(arch=dict(ARCH, depth=2)), 'depth'),
        (dict(arch=dict(ARCH, num_heads=5)), 'num_heads'),
        (dict(patch_size=7), 'patch_size'),
        (dict(order=('tr',)), 'order'),
        (dict(order=('tr', 'xyz')), 'order'),
        (dict(out_type='map'), 'out_type'),
        (dict(mix_token=True), 'mix_token'),
        (dict(mix_token=True, out_type='dense', out_indices=0), 'last block'),
        (dict(out_indices=2), 'out_indices'),
        (dict(frozen_stages=3), 'frozen_stages'),
        (dict(frozen_stages=-2), 'frozen_stages'),
    ],
)
def test_bad_arguments_are_named(options, name):
    with pytest.raises(ValueError, match=name):
        lvvit(**options)


def test_pyramid():
    neck = LVViTPyramid(8, (4, 5, 6, 7), norm_cfg=dict(type='BN'))
    outs = neck([torch.randn(2, 8, 3, 4)] * 4)
    assert [tuple(out.shape) for out in outs] == [
        (2, 4, 12, 16),
        (2, 5, 6, 8),
        (2, 6, 3, 4),
        (2, 7, 3, 4),
    ]
    with pytest.raises(ValueError, match='out_indices'):
        neck([torch.randn(2, 8, 3, 4)] * 3)
    with pytest.raises(ValueError, match='out_channels'):
        LVViTPyramid(8, (4, 4))


def test_segmentor_trains():
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS as ROOT
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    cfg = Config.fromfile(CONFIGS / 'lvvit-small_upernet_8xb2-160k_ade20k-512x512.py')
    DefaultScope.get_instance('mmseg', scope_name='mmseg')
    cfg.model.backbone.update(arch=dict(ARCH, num_layers=4), img_size=64, out_indices=(0, 1, 2, 3))
    cfg.model.neck.update(in_channels=24, out_channels=(8, 8, 8, 8))
    cfg.model.decode_head.update(in_channels=[8] * 4, channels=8)
    cfg.model.auxiliary_head.update(in_channels=8)
    cfg.model.data_preprocessor.update(size=(64, 96))
    model = revert_sync_batchnorm(ROOT.build(cfg.model)).train()
    samples = [SegDataSample(metainfo=dict(img_shape=(64, 96))) for _ in range(2)]
    for sample in samples:
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, 64, 96)))
    data = dict(inputs=list(torch.randn(2, 3, 64, 96)), data_samples=samples)
    loss, _ = model.parse_losses(model(**model.data_preprocessor(data, True), mode='loss'))
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None for p in model.backbone.parameters())


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
    whole, part = (
        classifier(init_cfg=init_cfg),
        classifier(backbone=dict(init_cfg=init_cfg)).backbone,
    )
    whole.init_weights()
    part.init_weights()
    for ours, theirs in ((whole, source), (part, source.backbone)):
        expected = theirs.state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in ours.state_dict().items())
    official.pop('norm.bias')
    torch.save(official, file)
    with pytest.raises(ValueError, match='norm.bias'):
        classifier(init_cfg=init_cfg).init_weights()
