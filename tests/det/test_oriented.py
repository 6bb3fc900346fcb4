"""Coder, overlaps, costs, losses and the dense head of the oriented-box layer; its data sets and metric
are in test_oriented_data.py."""

import math

import numpy as np
import pytest
import torch
from drawn_rectangles import draw_rectangles, oriented_run
from mmdet.models.task_modules.assigners import HungarianAssigner
from mmdet.registry import MODELS as DET_MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from training import train

from mmextra.distill.base import Recorder
from mmextra.distill.ld import LocalizationDistillationHook, vlr_weights
from mmextra.distill.ld.hook import kl
from mmextra.ops.rotated import (
    axis_aligned,
    gaussian_distance,
    oriented_l1,
    regularize_boxes,
    rotated_iou,
)
from mmextra.registry import MODELS, TASK_UTILS
from mmextra.structures.oriented_boxes import OrientedBoxes, oriented_overlaps

TRAIN_CFG = dict(assigner=dict(type='mmdet.ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1)
TEST_CFG = ConfigDict(
    nms_pre=100,
    min_bbox_size=0,
    score_thr=0.0,
    nms=dict(type='nms_rotated', iou_threshold=0.1),
    max_per_img=20,
)
HEAD = dict(
    num_classes=2,
    in_channels=8,
    feat_channels=8,
    stacked_convs=1,
    norm_cfg=None,
    anchor_generator=dict(
        type='mmdet.AnchorGenerator',
        ratios=[1.0],
        octave_base_scale=4,
        scales_per_octave=1,
        strides=[8, 16],
    ),
    loss_cls=dict(type='mmdet.QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
    loss_dfl=dict(type='mmdet.DistributionFocalLoss', loss_weight=0.25),
    train_cfg=TRAIN_CFG,
    test_cfg=TEST_CFG,
)


class Detector(torch.nn.Module):
    """What test-time augmentation asks of one."""

    test_step = None


TINY = dict(
    OrientedDeltaCoder=dict(),
    OrientedOverlaps2D=dict(),
    OrientedL1Cost=dict(),
    OrientedIoUCost=dict(),
    OrientedGDCost=dict(),
    OrientedIoULoss=dict(),
    OrientedGDLoss=dict(),
    OrientedGFLHead=HEAD,
    OrientedDOTADataset=dict(lazy_init=True),
    OrientedDOTADatasetV15=dict(lazy_init=True),
    OrientedDOTADatasetV2=dict(lazy_init=True),
    OrientedDOTAMetric=dict(),
    OrientedLocalVisualizer=dict(name='tiny'),
    OrientedRandomRotate=dict(),
    OrientedTTAModel=dict(
        module=Detector(), tta_cfg=dict(nms=dict(iou_threshold=0.1), max_per_img=9)
    ),
    PolygonToOriented=dict(),
)
META = dict(img_shape=(64, 96), ori_shape=(64, 96), pad_shape=(64, 96), scale_factor=(1.0, 1.0))


def random_boxes(count, low=8, high=56):
    box = torch.rand(count, 5)
    sides = 4 + box[:, 2:4] * 30
    return torch.cat([low + box[:, :2] * (high - low), sides, (box[:, 4:] - 0.5) * 3], 1)


def instances(boxes, **extra):
    return InstanceData(bboxes=boxes, labels=torch.arange(len(boxes)) % 2, **extra)


# Coder


def test_coding_and_decoding_give_the_same_rectangle():
    coder = TASK_UTILS.build(dict(type='OrientedDeltaCoder'))
    proposals, boxes = random_boxes(50), random_boxes(50)
    decoded = coder.decode(proposals, coder.encode(proposals, OrientedBoxes(boxes)))
    torch.testing.assert_close(
        regularize_boxes(decoded), regularize_boxes(boxes), rtol=1e-3, atol=1e-3
    )
    assert coder.encode(proposals, proposals).abs().max() < 1e-5


def test_the_code_is_measured_along_the_axes_of_the_proposal():
    coder = TASK_UTILS.build(dict(type='OrientedDeltaCoder', target_stds=(1, 1, 1, 1, 1)))
    proposal = torch.tensor([[10.0, 10.0, 8.0, 2.0, math.pi / 2]])  # its width points down
    box = torch.tensor([[10.0, 14.0, 16.0, 1.0, math.pi / 2 + math.pi - 0.1]])
    expected = [[0.5, 0, math.log(2), -math.log(2), -0.1]]
    assert np.allclose(coder.encode(proposal, box), expected, atol=1e-5)
    scaled = TASK_UTILS.build(dict(type='OrientedDeltaCoder', target_means=(0, 0, 0, 0, 1)))
    expected = [[5, 0, math.log(2) / 0.2, -math.log(2) / 0.2, -11]]
    assert np.allclose(scaled.encode(proposal, box), expected, atol=1e-4)


def test_codes_are_at_least_float32_and_exact_in_float64():
    coder = TASK_UTILS.build(dict(type='OrientedDeltaCoder'))
    proposals, boxes = random_boxes(50).double(), random_boxes(50).double()
    decoded = coder.decode(proposals, coder.encode(proposals, boxes))
    torch.testing.assert_close(
        regularize_boxes(decoded), regularize_boxes(boxes), rtol=0, atol=1e-10
    )
    # A code in half precision does not move boxes to whole pixels.
    far = torch.tensor([[1001.4, 777.7, 20.0, 10.0, 0.3]])
    torch.testing.assert_close(coder.decode(far, torch.zeros(1, 5).half()), far)
    assert coder.encode(far.half(), far).dtype == torch.float32


def test_decoding_limits_the_ratio_of_sides():
    coder = TASK_UTILS.build(dict(type='OrientedDeltaCoder', wh_ratio_clip=4))
    code = torch.tensor([[0.0, 0, 1e4, -1e4, 0]])
    assert np.allclose(coder.decode(torch.tensor([[0.0, 0, 2, 2, 0]]), code), [[0, 0, 8, 0.5, 0]])


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(target_means=(0, 0, 0, 0)), 'target_means needs five numbers'),
        (dict(target_stds=(1, 1, 1, 1, 0)), 'target_stds must be positive'),
    ],
)
def test_bad_options_of_the_coder(options, message):
    with pytest.raises(ValueError, match=message):
        TASK_UTILS.build(dict(type='OrientedDeltaCoder', **options))


# Overlaps and costs


def test_the_overlap_calculator_serves_stock_assigners():
    calculator = TASK_UTILS.build(dict(type='OrientedOverlaps2D'))
    boxes = random_boxes(4)
    assert torch.equal(calculator(boxes, boxes[:2]), oriented_overlaps(boxes, boxes[:2]))
    assert repr(calculator) == 'OrientedOverlaps2D()'
    assigner = TASK_UTILS.build(
        dict(
            type='mmdet.MaxIoUAssigner',
            pos_iou_thr=0.5,
            neg_iou_thr=0.5,
            iou_calculator=dict(type='mmextra.OrientedOverlaps2D'),
        )
    )
    result = assigner.assign(InstanceData(priors=boxes), instances(boxes[1:3]))
    assert result.gt_inds.tolist()[1:3] == [1, 2]


def costs_in_loops(cost, pred, gt, **options):
    factor = torch.tensor([96.0, 64.0, 96.0, 64.0])
    rows = []
    for p in pred:
        row = []
        for g in gt:
            if cost == 'OrientedL1Cost':
                value = oriented_l1(p, g, factor, **options).sum()
            elif cost == 'OrientedIoUCost':
                value = -rotated_iou(p, g)
            else:
                value = 1 - 1 / (1 + torch.log1p(gaussian_distance(p, g, **options)))
            row.append(2.0 * value.item())
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(
    'kind, options, loop',
    [
        ('OrientedL1Cost', dict(), dict()),
        ('OrientedL1Cost', dict(angle_diff='plain'), dict(angle_diff='plain')),
        ('OrientedL1Cost', dict(square_aware=True), dict(square_aware=True)),
        ('OrientedIoUCost', dict(), dict()),
        ('OrientedGDCost', dict(), dict()),
        ('OrientedGDCost', dict(loss_type='kld', alpha=2.0), dict(kind='kld', alpha=2.0)),
    ],
)
def test_costs_in_loops(kind, options, loop):
    cost = TASK_UTILS.build(dict(type=kind, weight=2.0, **options))
    pred, gt = random_boxes(5), random_boxes(3)
    found = cost(InstanceData(bboxes=pred), instances(OrientedBoxes(gt)), META)
    assert np.allclose(found, costs_in_loops(kind, pred, gt, **loop), atol=1e-4)
    assert cost(InstanceData(bboxes=pred), instances(gt[:0]), META).shape == (5, 0)


def test_matching_finds_the_objects():
    assigner = HungarianAssigner(
        [
            dict(type='mmdet.FocalLossCost', weight=2.0),
            dict(type='mmextra.OrientedL1Cost', weight=5.0),
            dict(type='mmextra.OrientedIoUCost', weight=2.0),
        ]
    )
    gt = instances(random_boxes(4))
    order = torch.tensor([2, 0, 3, 1])
    boxes = torch.cat([random_boxes(3), gt.bboxes[order]])
    pred = InstanceData(bboxes=boxes, scores=torch.zeros(7, 2))
    result = assigner.assign(pred, gt, META)
    assert result.gt_inds.tolist() == [0, 0, 0, 3, 1, 4, 2]


def test_a_gt_at_the_end_of_the_angle_range_is_near_a_prediction_at_its_start():
    pred = torch.tensor([[50.0, 30.0, 20.0, 10.0, math.radians(-89.9)]])
    gt = torch.tensor([[50.0, 30.0, 20.0, 10.0, math.radians(89.9)]])
    costs = [
        TASK_UTILS.build(dict(type='OrientedL1Cost', angle_diff=mode))(
            InstanceData(bboxes=pred), instances(gt), META
        ).item()
        for mode in ('periodic', 'plain')
    ]
    assert costs[0] < 0.01 and costs[1] == pytest.approx(1, abs=0.01)


# Losses


@pytest.mark.parametrize(
    'cfg',
    [
        dict(type='OrientedIoULoss'),
        dict(type='OrientedIoULoss', mode='log'),
        *(
            dict(type='OrientedGDLoss', loss_type=kind, fun=fun, tau=tau)
            for kind in ('gwd', 'kld')
            for fun, tau in (('log1p', 1.0), ('sqrt', 2.0), ('none', 0.0))
        ),
    ],
    ids=lambda c: '-'.join(map(str, c.values())),
)
def test_losses_in_loops_and_gradcheck(cfg):
    loss = MODELS.build(dict(cfg, reduction='none'))
    target = random_boxes(6).double()
    pred = (target + torch.randn(6, 5) * 0.5).requires_grad_()
    found = loss(pred, target)
    for i in range(6):
        if cfg['type'] == 'OrientedIoULoss':
            iou = rotated_iou(pred[i], target[i]).item()
            expected = 1 - iou if cfg.get('mode') != 'log' else -math.log(iou)
        else:
            distance = gaussian_distance(pred[i], target[i], cfg['loss_type']).item()
            value = dict(log1p=math.log1p, sqrt=math.sqrt, none=float)[cfg['fun']](distance)
            expected = 1 - 1 / (cfg['tau'] + value) if cfg['tau'] >= 1 else value
        assert found[i].item() == pytest.approx(expected, abs=1e-6)
    assert torch.autograd.gradcheck(lambda p: loss(p, target), (pred,))


@pytest.mark.parametrize('kind', ['OrientedIoULoss', 'OrientedGDLoss'])
def test_losses_reduce_as_those_of_mmdet(kind):
    loss = MODELS.build(dict(type=kind, loss_weight=3.0))
    pred, target = random_boxes(4).requires_grad_(), random_boxes(4)
    each = loss(pred, target, reduction_override='none')
    weight = torch.tensor([1.0, 0, 2, 0])
    torch.testing.assert_close(loss(pred, target), each.mean())
    torch.testing.assert_close(loss(pred, target, reduction_override='sum'), each.sum())
    expected = (each * weight).sum() / 7
    torch.testing.assert_close(loss(pred, target, weight=weight, avg_factor=7.0), expected)
    rows = weight[:, None].expand(-1, 5)
    torch.testing.assert_close(loss(pred, target, weight=rows, avg_factor=7.0), expected)
    # The same numbers where boxes are of the box type, and in half precision.
    torch.testing.assert_close(loss(OrientedBoxes(pred), OrientedBoxes(target)), each.mean())
    assert loss(pred.half(), target.half()).dtype == torch.float32


@pytest.mark.parametrize('kind', ['OrientedIoULoss', 'OrientedGDLoss'])
def test_losses_of_no_pairs_are_zero_with_a_gradient(kind):
    loss = MODELS.build(dict(type=kind))
    pred = torch.zeros(0, 5, requires_grad=True)
    value = loss(pred, torch.zeros(0, 5), avg_factor=1.0)
    value.backward()
    assert value.item() == 0 and pred.grad is not None
    pred = random_boxes(2).requires_grad_()
    value = loss(pred, random_boxes(2), weight=torch.zeros(2), avg_factor=1.0)
    value.backward()
    assert value.item() == 0 and not pred.grad.any()


@pytest.mark.parametrize('kind', ['OrientedIoULoss', 'OrientedGDLoss'])
def test_equal_boxes_have_a_finite_gradient(kind):
    pred = random_boxes(5).requires_grad_()
    loss = MODELS.build(dict(type=kind))(pred, pred.detach())
    loss.backward()
    assert loss.item() < 1e-3 and pred.grad.isfinite().all()


@pytest.mark.parametrize(
    'cfg, message',
    [
        (dict(type='OrientedIoULoss', mode='square'), "mode must be 'linear' or 'log'"),
        (dict(type='OrientedIoULoss', reduction='max'), 'reduction must be one of'),
        (dict(type='OrientedGDLoss', loss_type='bcd'), 'loss_type must be one of'),
        (dict(type='OrientedGDLoss', fun='log'), 'fun must be one of'),
    ],
)
def test_bad_options_of_losses(cfg, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(cfg)


@pytest.mark.parametrize(
    'cfg, message',
    [
        (dict(type='OrientedL1Cost', angle_diff='cosine'), 'angle_diff must be one of'),
        (dict(type='OrientedGDCost', loss_type='bcd'), 'loss_type must be one of'),
    ],
)
def test_bad_options_of_costs(cfg, message):
    with pytest.raises(ValueError, match=message):
        TASK_UTILS.build(cfg)


# The dense head with distributions


def head_and_outputs(batch=1, **options):
    head = MODELS.build(dict(type='OrientedGFLHead', **{**HEAD, **options}))
    feats = [torch.randn(batch, 8, 64 // s, 96 // s) for s in (8, 16)]
    return head, head(feats)


def test_the_bins_of_the_head():
    head, (scores, boxes) = head_and_outputs()
    assert [b.shape for b in boxes] == [(1, 45, 8, 12), (1, 45, 4, 6)]
    assert head.integral.values.shape == (5, 9) and 'integral.values' not in head.state_dict()
    assert head.integral.values[0].tolist() == torch.linspace(-2, 2, 9).tolist()
    assert head.integral.values[4].tolist() == torch.linspace(-5, 2, 9).tolist()
    logits = torch.full((1, 5, 9), -1e4)
    logits[0, range(5), [4, 5, 6, 0, 8]] = 0
    anchor = torch.tensor([[10.0, 20.0, 18.0, 36.0]])  # 8 x 16 about (14, 28)
    expected = [[14, 28 + 0.5 * 16, 8 * math.e, 16 * math.exp(-2), 2]]
    assert np.allclose(head.decode(anchor, logits.flatten(1)), expected, atol=1e-4)
    positions = head.integral.positions(torch.tensor([[-2.0, 0, 0.5, 9, -9]]))
    assert np.allclose(positions, [[0, 4, 5, 7.99, 0]])


def test_the_targets_of_the_head_are_those_of_boxes_without_their_angle():
    head, (scores, _) = head_and_outputs()
    gt = instances(random_boxes(3))
    upright = instances(axis_aligned(gt.bboxes))
    anchors = lambda: head.get_anchors([s.shape[-2:] for s in scores], [META], 'cpu')  # noqa: E731
    found = head.get_targets(*anchors(), [gt], [META])
    stock = DET_MODELS.build(
        dict(
            HEAD,
            type='GFLHead',
            loss_bbox=dict(type='mmdet.GIoULoss'),
            bbox_coder=dict(type='mmdet.DistancePointBBoxCoder'),
        )
    ).get_targets(*anchors(), [upright], [META])
    for part in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(found[part], stock[part]))
    positive = (torch.cat(found[1], 1) < 2)[0]
    boxes, straight = torch.cat(found[3], 1)[0], torch.cat(stock[3], 1)[0]
    assert positive.any() and boxes.shape == (120, 5)
    torch.testing.assert_close(axis_aligned(boxes[positive]), straight[positive])
    assert {tuple(b) for b in boxes[positive].tolist()} <= {tuple(b) for b in gt.bboxes.tolist()}


@pytest.mark.parametrize('empty', [False, True])
def test_losses_of_the_head(empty):
    head, outputs = head_and_outputs(batch=2)
    gts = [instances(random_boxes(3)), instances(random_boxes(0))]
    if empty:
        gts[0] = gts[1]
    losses = head.loss_by_feat(*outputs, gts, [META, META])
    total = sum(sum(v) for v in losses.values())
    total.backward()
    assert set(losses) == {'loss_cls', 'loss_bbox', 'loss_dfl'} and total.isfinite()
    assert (sum(losses['loss_bbox']).item() == 0) == empty
    assert all(p.grad is not None for p in head.parameters())


def test_a_head_that_is_right_has_no_box_loss():
    head, (scores, maps) = head_and_outputs()
    gt = instances(random_boxes(2))
    targets = head.get_targets(
        *head.get_anchors([s.shape[-2:] for s in scores], [META], 'cpu'), [gt], [META]
    )
    for level, (anchors, labels, boxes) in enumerate(zip(targets[0], targets[1], targets[3])):
        positive = (labels[0] < 2).nonzero()[:, 0]
        logits = torch.zeros(len(labels[0]), 5, 9)
        centre = torch.cat([(anchors[0, :, :2] + anchors[0, :, 2:]) / 2], 1)
        sides = anchors[0, :, 2:] - anchors[0, :, :2]
        seen_from = torch.cat([centre, sides, torch.zeros(len(centre), 1)], 1)
        numbers = head.bbox_coder.encode(seen_from[positive], boxes[0, positive])
        where = head.integral.positions(numbers)
        low = where.floor().long()
        for part, bins in ((1 - (where - low), low), (where - low, low + 1)):
            logits[positive] = logits[positive].scatter(
                2, bins[..., None], part.clamp(min=1e-9).log()[..., None] + 60
            )
        shape = maps[level].shape
        maps[level] = logits.reshape(*shape[2:], 45).permute(2, 0, 1)[None]
    losses = head.loss_by_feat(scores, maps, [gt], [META])
    assert sum(losses['loss_bbox']).item() < 1e-3


def test_predictions_of_the_head():
    head, outputs = head_and_outputs(batch=2)
    metas = [dict(META, scale_factor=(2.0, 2.0))] * 2
    found = head.predict_by_feat(*outputs, batch_img_metas=metas, rescale=True)
    plain = head.predict_by_feat(*outputs, batch_img_metas=metas, rescale=False)
    for one, other in zip(found, plain):
        assert 0 < len(one) <= 20 and isinstance(one.bboxes, OrientedBoxes)
        angles = one.bboxes.angles
        assert ((angles >= -math.pi / 2) & (angles <= math.pi / 2)).all()
        torch.testing.assert_close(one.bboxes.tensor[:, :4] * 2, other.bboxes.tensor[:, :4])
        for label in (0, 1):
            boxes = one[one.labels == label].bboxes
            overlaps = OrientedBoxes.overlaps(boxes, boxes) - torch.eye(len(boxes))
            assert (overlaps <= 0.1 + 1e-3).all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_predictions_of_the_head_in_half_precision(dtype):
    """What the head gets under autocast: the boxes of the same numbers in float32."""
    head, outputs = head_and_outputs()
    half = [[m.to(dtype) for m in part] for part in outputs]
    exact = [[m.float() for m in part] for part in half]
    found, expected = (head.predict_by_feat(*o, batch_img_metas=[META])[0] for o in (half, exact))
    assert len(found) > 0 and found.scores.dtype == found.bboxes.tensor.dtype == torch.float32
    torch.testing.assert_close(found.bboxes.tensor, expected.bboxes.tensor)
    torch.testing.assert_close(found.scores, expected.scores)


def test_bad_input_of_the_head():
    with pytest.raises(ValueError, match='angle_range must be'):
        MODELS.build(dict(HEAD, type='OrientedGFLHead', angle_range=(2.0, -5.0)))
    head, outputs = head_and_outputs()
    with pytest.raises(ValueError, match="box_type='obox'"):
        head.loss_by_feat(*outputs, [instances(torch.rand(2, 4))], [META])


# Oriented localization distillation


def distilled(head, student, teacher, gts, **options):
    """What the LD hook adds for given outputs of two heads."""
    recorder = Recorder(head, 'student')
    recorder.watch(['get_targets()'])
    recorder.arm()
    head.loss_by_feat(*student, gts, [META] * len(gts))
    targets = recorder['get_targets()']
    recorder.disarm()

    class Side(dict):
        """Stands for both the recorder and the teacher."""

    own, other = Side({'bbox_head': student, 'bbox_head.get_targets()': targets}), Side()
    own.model = type('Model', (), dict(bbox_head=head))
    other.head = teacher
    samples = []
    for gt in gts:
        samples.append(DetDataSample(metainfo=META))
        samples[-1].gt_instances = gt
    hook = LocalizationDistillationHook(teacher=dict(config='none'), **options)
    hook.check(own.model, own.model)
    return hook.losses(own, other, torch.zeros(1), samples)


@pytest.mark.parametrize('kind, weights', [('gwd', (10, 20)), ('kld', (15, 15))])
def test_oriented_ld_in_loops(kind, weights):
    head, student = head_and_outputs(loss_bbox=dict(type='mmextra.OrientedGDLoss', loss_type=kind))
    teacher = [[torch.randn_like(m) for m in part] for part in student]
    gt = instances(random_boxes(3))
    losses = distilled(head, student, teacher, [gt])
    assert set(losses) == {'loss_ld', 'loss_kd'}
    anchors = head.get_anchors([s.shape[-2:] for s in student[0]], [META], 'cpu')[0][0]
    region = vlr_weights(
        torch.cat(anchors),
        [len(a) for a in anchors],
        axis_aligned(gt.bboxes),
        gamma=0.25,
        metric='iou',
        bounded=False,
    ).split([len(a) for a in anchors])
    for level, weight in enumerate(region):
        rows = [m[level][0].flatten(1).T for m in (*student, *teacher)]
        ld = kd = 0.0
        inside = weight.nonzero()[:, 0].tolist()
        for i in inside:
            edges = [
                kl(rows[1][None, i, e : e + 9], rows[3][None, i, e : e + 9], 5)
                for e in range(0, 45, 9)
            ]
            ld += weight[i] * sum(edges)
            kd += weight[i] * kl(rows[0][None, i], rows[2][None, i], 5)
        count = max(1, len(inside))
        assert losses['loss_ld'][level].item() == pytest.approx(
            weights[0] * float(ld) / count, rel=1e-4
        )
        assert losses['loss_kd'][level].item() == pytest.approx(
            weights[1] * float(kd) / count, rel=1e-4
        )
    assert sum(losses['loss_ld']).item() > 0


def test_an_oriented_student_that_equals_its_teacher_learns_nothing():
    head, student = head_and_outputs(batch=2)
    same = [[m.detach() for m in part] for part in student]
    losses = distilled(
        head, student, same, [instances(random_boxes(3)), instances(random_boxes(0))]
    )
    assert sum(sum(v) for v in losses.values()).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(region='main+vlr'), 'distilled in one region'),
        (dict(imitation=dict(method='gibox')), "'gibox' needs horizontal boxes"),
    ],
)
def test_what_oriented_ld_cannot_do(options, message):
    head, student = head_and_outputs()
    with pytest.raises(ValueError, match=message):
        distilled(head, student, student, [instances(random_boxes(2))], **options)


def test_teacher_and_student_must_have_the_same_bins():
    own, other = (
        type('Model', (), dict(bbox_head=head_and_outputs(angle_range=r)[0]))
        for r in ((-5.0, 2.0), (-2.0, 2.0))
    )
    hook = LocalizationDistillationHook(teacher=dict(config='none'))
    with pytest.raises(ValueError, match='values of their bins'):
        hook.check(own, other)


def detector():
    return dict(
        type='mmdet.GFL',
        data_preprocessor=dict(
            type='mmdet.DetDataPreprocessor', mean=[60.0] * 3, std=[50.0] * 3, pad_size_divisor=16
        ),
        backbone=dict(
            type='mmdet.ResNet',
            depth=18,
            base_channels=8,
            num_stages=3,
            out_indices=(1, 2),
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            norm_eval=False,
        ),
        neck=dict(type='mmdet.FPN', in_channels=[16, 32], out_channels=8, num_outs=2),
        bbox_head=dict(
            type='mmextra.OrientedGFLHead',
            **{k: v for k, v in HEAD.items() if k not in ('train_cfg', 'test_cfg')},
        ),
        train_cfg=TRAIN_CFG,
        test_cfg=TEST_CFG,
    )


@pytest.fixture(scope='module')
def rectangles_root(tmp_path_factory):
    return draw_rectangles(tmp_path_factory.mktemp('oriented') / 'rectangles')


def test_oriented_ld_trains_a_stock_detector(rectangles_root, tmp_path):
    """Two iterations and a validation on drawn rectangles, with the hook."""
    cfg = oriented_run(detector(), rectangles_root, tmp_path)
    hook = dict(
        type='mmextra.LocalizationDistillationHook', teacher=dict(config=dict(model=detector()))
    )
    cfg.custom_hooks = [*cfg.custom_hooks, hook]
    runner = train(cfg)
    logged = runner.message_hub.log_scalars
    for name in ('loss_cls', 'loss_bbox', 'loss_dfl', 'loss_ld', 'loss_kd'):
        values = logged[f'train/{name}'].data[0]
        assert np.isfinite(values).all() and values.any(), name
    assert not [k for k in runner.model.state_dict() if 'teacher' in k]
    assert 'val/dota/mAP' in logged
