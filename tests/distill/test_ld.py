"""LD: the authors' losses and regions, the numbers of the paper, and the hook on a stock detector."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData
from training import ROOT

from mmextra.distill.base import Recorder
from mmextra.distill.ld import LocalizationDistillationHook
from mmextra.distill.ld.hook import (
    Level,
    dense_levels,
    general_instances,
    imitation_loss,
    kl,
    per_anchor,
)
from mmextra.distill.ld.regions import imitation_region, vlr_weights
from mmextra.ops.rotated import axis_aligned
from mmextra.registry import MODELS, TASK_UTILS

ANCHORS = dict(type='mmdet.AnchorGenerator', ratios=[1.0], scales_per_octave=1)


def golden_head(meta):
    """The student's head of a golden file; raw outputs are given, so its convolutions do not matter."""
    kind, kwargs, strides = meta['kind'], meta['kwargs'], meta['strides']
    common = dict(
        num_classes=meta['num_classes'], in_channels=32, feat_channels=32, stacked_convs=1
    )
    atss = dict(
        assigner=dict(type='ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1, debug=False
    )
    anchors = dict(ANCHORS, strides=strides, octave_base_scale=kwargs.get('obs', 4))
    sigmoid = dict(use_sigmoid=True, loss_weight=1.0)
    focal = dict(type='FocalLoss', gamma=2.0, alpha=0.25, **sigmoid)
    box = dict(type='GIoULoss', loss_weight=2.0)
    if kind == 'gfl':
        return dict(
            type='mmdet.GFLHead',
            reg_max=meta['reg_max'],
            anchor_generator=anchors,
            loss_cls=dict(type='QualityFocalLoss', beta=2.0, **sigmoid),
            loss_dfl=dict(type='DistributionFocalLoss', loss_weight=0.25),
            loss_bbox=box,
            train_cfg=atss,
            **common,
        )
    if kind == 'atss':
        return dict(
            type='mmextra.ATSSDistHead',
            reg_max=meta['reg_max'],
            anchor_generator=anchors,
            loss_cls=focal,
            loss_bbox=box,
            loss_centerness=dict(type='CrossEntropyLoss', **sigmoid),
            train_cfg=atss,
            **common,
        )
    if kind == 'fcos':
        return dict(
            type='mmextra.FCOSDistHead',
            reg_max=meta['reg_max'],
            strides=strides,
            regress_ranges=kwargs['rr'],
            center_sampling=True,  # the default of the authors' head
            loss_cls=focal,
            loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
            loss_centerness=dict(type='CrossEntropyLoss', **sigmoid),
            **common,
        )
    assigner = dict(
        type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1
    )
    return dict(
        type='mmextra.RetinaDistHead',
        reg_max=meta['reg_max'],
        anchor_generator=dict(
            type='mmdet.AnchorGenerator',
            octave_base_scale=kwargs.get('obs', 4),
            scales_per_octave=kwargs['spo'],
            ratios=kwargs['ratios'],
            strides=strides,
        ),
        loss_cls=focal,
        loss_bbox=box,
        train_cfg=dict(
            assigner=assigner,
            sampler=dict(type='mmdet.PseudoSampler'),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        **common,
    )


# What the authors call the losses, and what mmextra calls them.
NAMES = dict(
    loss_ld='loss_ld',
    loss_ld_vlr='loss_ld_vlr',
    loss_ld_neg='loss_ld_vlr',
    loss_kd='loss_kd',
    loss_cls_kd='loss_kd',
)


class Outputs:
    """Stands for the records of a student, or for a teacher, whose head gave these outputs."""

    def __init__(self, head, outs, targets=None):
        self.model = torch.nn.Module()
        self.model.bbox_head = head
        self.records = {'bbox_head': outs, 'bbox_head.get_targets()': targets}
        self.head = outs

    def __getitem__(self, name):
        return self.records[name]


@pytest.mark.golden('ld', 'ld_gfl_loss', 'ld_atss_loss', 'ld_fcos_loss', 'ld_retina_loss')
def test_losses_are_the_authors(case):
    meta = case.meta
    head = MODELS.build(golden_head(meta) | dict(_scope_='mmdet')).train()
    levels = range(len(meta['strides']))
    outs = [[case.leaf(f's_{part}{i}') for i in levels] for part in ('cls', 'box')]
    if 's_ctr0' in case.inputs:
        outs.append([case.inputs[f's_ctr{i}'] for i in levels])
    teacher_outs = [case.series('t_cls'), case.series('t_box')]
    images = range(outs[0][0].shape[0])
    gts = [
        InstanceData(bboxes=case.inputs[f'gt_bboxes{i}'], labels=case.inputs[f'gt_labels{i}'])
        for i in images
    ]
    metas = [dict(img_shape=meta['img_shape'], pad_shape=meta['img_shape'])] * len(images)

    recorder = Recorder(head, 'student')
    recorder.watch(['get_targets()'])
    recorder.arm()
    base = head.loss_by_feat(*outs, gts, metas)
    targets = recorder['get_targets()']
    recorder.disarm()

    imitation = meta['kwargs'].get('imitation_method')
    hook = LocalizationDistillationHook(
        teacher=dict(config='none'),
        per_edge=meta['kind'] != 'retina',
        vlr=dict(metric='iof_diou'),
    )
    terms = hook.recipe(head)
    per_level = dense_levels(
        head, outs, teacher_outs, targets, [g.bboxes for g in gts], metas, dict(metric='iof_diou')
    )
    ours = {}
    for level in per_level:
        for name, value in hook.region_terms(level, terms, head).items():
            ours.setdefault(name, []).append(value)

    got = {name: torch.stack(ours[NAMES[name]]) for name in case.outputs if name in NAMES}
    sum(value.sum() for value in got.values()).backward()
    # The stock head sums some losses over levels where the authors list them.
    for name in ('loss_cls', 'loss_bbox', 'loss_dfl', 'loss_centerness'):
        if name in case.outputs:
            total = sum(base[name]) if isinstance(base[name], list) else base[name]
            torch.testing.assert_close(total, case.outputs[name].sum(), rtol=1e-4, atol=1e-4)
    skip = ['loss_cls', 'loss_bbox', 'loss_dfl', 'loss_centerness', 'loss_im', 'loss_kd_neg']
    for i, level in enumerate(per_level):
        points = level.anchors.reshape(len(images), -1, level.anchors.shape[1])[0]
        got[f'anchors{i}' if points.shape[1] == 4 else f'points{i}'] = points
        label = targets[0 if meta['kind'] in ('fcos', 'retina') else 1][i]
        if meta['kind'] == 'fcos':  # there the label C + 1 marks the region
            label = label.clone()
            label[level.region > 0] = meta['num_classes'] + 1
        got[f'labels{i}'] = label
        got[f'label_weights{i}'] = level.label_weights.reshape(label.shape)
        got[f'vlr_region{i}'] = level.region.reshape(len(images), -1)
        if imitation:
            start = sum(len(lv.anchors) for lv in per_level[:i]) // len(images)
            every = torch.cat([lv.anchors.reshape(len(images), -1, 4)[0] for lv in per_level])
            count = level.anchors.shape[0] // len(images)
            masks = [
                imitation_region(imitation, every, g.bboxes)[start : start + count] for g in gts
            ]
            got[f'im_region{i}'] = torch.stack(masks)
    case.check(got, skip=tuple(skip))


@pytest.mark.golden('ld', 'ld_imitation')
def test_imitation_is_the_authors(case):
    x = case.inputs
    level = Level(
        student_cls=x['s_cls'],
        teacher_cls=x['t_cls'],
        student_box=x['s_box'],
        teacher_box=x['t_box'],
        positive=torch.arange(1),
        label_weights=torch.ones(len(x['s_cls'])),
        region=torch.zeros(len(x['s_cls'])),
        anchors=x['anchors'],
        stride=case.meta['stride'],
    )
    finegrained = imitation_region('finegrained', x['anchors'], x['gt_bboxes'])
    inbox = imitation_region('fitnet', x['anchors'], x['gt_bboxes'])
    chosen = general_instances(level, case.meta['reg_max'])
    regions = dict(gibox=chosen, finegrained=finegrained, fitnet=inbox)
    weight = 2.0  # `meta['what']` names it
    losses = {
        f'loss_{method}': weight * imitation_loss(x['s_feat'], x['t_feat'], region, method)
        for method, region in regions.items()
    }
    case.check(
        dict(gi_idx=chosen, region_finegrained=finegrained, region_inbox=inbox, **losses), grads={}
    )


# The numbers of the paper, and behaviour that the golden files do not show.


@pytest.mark.parametrize(
    'bins, temperature, expected', [(17, 10, 0.287843), (17, 1, 0.166190), (80, 2, 0.110917)]
)
def test_kl_averages_over_bins(bins, temperature, expected):
    student, teacher = torch.zeros(1, bins), torch.zeros(1, bins)
    teacher[0, 3] = 10
    q, p = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    slow = (
        sum(q[0, i] * (q[0, i].log() - p[0, i].log()) for i in range(bins)) / bins * temperature**2
    )
    got = kl(student, teacher, temperature).item()
    assert got == pytest.approx(slow.item(), rel=1e-4)
    assert got == pytest.approx(expected, rel=1e-4)


def slow_vlr(anchors, counts, gts, topk, gamma, metric):
    """Section 3.3, anchor by anchor and object by object."""

    def iou(a, b, over=None):
        w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
        h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        area = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
        return w * h / (area[0] if over == 'anchor' else area[0] + area[1] - w * h)

    def center(a):
        return (a[0] + a[2]) / 2, (a[1] + a[3]) / 2

    def distance(a, b):
        return (center(a)[0] - center(b)[0]) ** 2 + (center(a)[1] - center(b)[1]) ** 2

    def diagonal(a, b):
        return (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2

    weights = [0.0] * len(anchors)
    for gt in gts:
        candidates, start = [], 0
        for count in counts:
            level = sorted(anchors[start : start + count], key=lambda a: distance(a, gt))
            candidates += [iou(a, gt) for a in level[:topk]]
            start += count
        mean = sum(candidates) / len(candidates)
        std = (sum((c - mean) ** 2 for c in candidates) / (len(candidates) - 1)) ** 0.5
        for i, a in enumerate(anchors):
            x = iou(a, gt, 'anchor' if metric == 'iof_diou' else None)
            x -= 0 if metric == 'iou' else distance(a, gt) / diagonal(a, gt)
            if gamma * (mean + std) <= x < mean + std:
                weights[i] = max(weights[i], iou(a, gt))
    return weights


def anchors_of(strides, side=64):
    """Square anchors of eight strides on every cell, level by level."""
    levels = []
    for s in strides:
        centers = torch.arange(side // s) * s + s / 2
        y, x = torch.meshgrid(centers, centers, indexing='ij')
        points = torch.stack([x, y], -1).reshape(-1, 2)
        levels.append(torch.cat([points - 2 * s, points + 2 * s], 1))
    return torch.cat(levels), [len(level) for level in levels]


@pytest.mark.parametrize('metric', ['iof_diou', 'diou', 'iou'])
@pytest.mark.parametrize('gamma', [0.0, 0.25, 0.6])
def test_vlr_equals_the_slow_loop(metric, gamma):
    anchors, counts = anchors_of([8, 16, 32])
    gts = torch.tensor([[5.0, 8.0, 30.0, 29.0], [20.0, 10.0, 60.0, 58.0]])
    got = vlr_weights(anchors, counts, gts, topk=9, gamma=gamma, metric=metric)
    expected = slow_vlr(anchors.tolist(), counts, gts.tolist(), 9, gamma, metric)
    torch.testing.assert_close(got, torch.tensor(expected))
    assert (got > 0).any() and (got <= 1).all()


def test_vlr_limits():
    anchors, counts = anchors_of([8, 16])
    gts = torch.tensor([[5.0, 8.0, 30.0, 29.0]])
    assert not vlr_weights(anchors, counts, gts[:0]).any()
    assert not vlr_weights(anchors, counts, gts, gamma=1.0, metric='diou').any()
    unified = vlr_weights(anchors, counts, gts, metric='iou', bounded=False)
    vlr = vlr_weights(anchors, counts, gts, metric='iou')
    assert (unified >= vlr).all() and (unified > vlr).any()
    with pytest.raises(ValueError, match='vlr metric must be one of'):
        vlr_weights(anchors, counts, gts, metric='giou')


def test_oriented_boxes_are_taken_without_their_angle():
    rotated = torch.tensor([[50.0, 40.0, 20.0, 10.0, 0.7]])
    assert axis_aligned(rotated).tolist() == [[40.0, 35.0, 60.0, 45.0]]


def random_case(head='gfl', batch=1, **meta):
    """A head, and random outputs of student and teacher for two objects an image."""
    meta = dict(
        kind=head,
        kwargs=dict(rr=[(-1, 32), (32, 1e8)], spo=1, ratios=[1.0]),
        strides=[8, 16],
        num_classes=3,
        reg_max=8,
        **meta,
    )
    module = MODELS.build(golden_head(meta) | dict(_scope_='mmdet')).train()
    generator = torch.Generator().manual_seed(3)

    def maps(channels):
        one = [torch.randn(1, channels, 64 // s, 64 // s, generator=generator) for s in (8, 16)]
        return [m.repeat(batch, 1, 1, 1) for m in one]

    outs = [[[m.requires_grad_() for m in maps(c)] for c in (3, 36)], [maps(3), maps(36)]]
    outs[0].append(maps(1))
    gt = InstanceData(
        bboxes=torch.tensor([[5.0, 8.0, 30.0, 29.0], [20.0, 10.0, 60.0, 58.0]]),
        labels=torch.tensor([0, 2]),
    )
    return module, outs[0], outs[1], [gt] * batch


def hook_losses(module, outs, teacher_outs, gts, **options):
    """What the hook adds for given outputs of the heads."""
    metas = [dict(img_shape=(64, 64), pad_shape=(64, 64))] * len(gts)
    recorder = Recorder(module, 'student')
    recorder.watch(['get_targets()'])
    recorder.arm()
    used = outs if not type(module).__name__.startswith(('GFL', 'Retina')) else outs[:2]
    module.loss_by_feat(*used, gts, metas)
    targets = recorder['get_targets()']
    recorder.disarm()
    samples = []
    for gt, meta in zip(gts, metas):
        sample = DetDataSample(metainfo=meta)
        sample.gt_instances = gt
        samples.append(sample)
    hook = LocalizationDistillationHook(teacher=dict(config='none'), **options)
    teacher = Outputs(module, teacher_outs)
    return hook.losses(Outputs(module, outs, targets), teacher, torch.zeros(1), samples)


@pytest.mark.parametrize(
    'head, region',
    [
        (h, r)
        for h in ('gfl', 'atss', 'fcos', 'retina')
        for r in ('main+vlr', 'unified')
        if (h, r) != ('fcos', 'unified')
    ],
)
def test_a_student_that_equals_its_teacher_learns_nothing(head, region):
    module, outs, _, gts = random_case(head)
    same = [[m.detach() for m in part] for part in outs[:2]]
    kd_vlr = dict() if region == 'main+vlr' else None
    losses = hook_losses(module, outs, same, gts, region=region, kd_vlr=kd_vlr)
    total = sum(sum(values) for values in losses.values())
    total.backward()
    assert total.item() == pytest.approx(0, abs=1e-5)
    assert all(m.grad.abs().max() < 1e-6 for part in outs[:2] for m in part)


def test_anchors_beyond_the_allowed_border_are_in_no_region():
    """Neither assigned nor candidates of the threshold: as if they did not exist."""
    module, outs, teacher_outs, gts = random_case()
    module.train_cfg['allowed_border'] = 0
    # As wide as two strides, so that some lie within the image.
    module.prior_generator = TASK_UTILS.build(dict(ANCHORS, strides=[8, 16], octave_base_scale=2))
    metas = [dict(img_shape=(64, 64), pad_shape=(64, 64))]
    recorder = Recorder(module, 'student')
    recorder.watch(['get_targets()'])
    recorder.arm()
    module.loss_by_feat(*outs[:2], gts, metas)
    levels = dense_levels(
        module, outs, teacher_outs, recorder['get_targets()'], [gts[0].bboxes], metas, {}
    )
    recorder.disarm()
    anchors = [level.anchors for level in levels]
    within = [(a[:, :2] >= 0).all(1) & (a[:, 2:] < 64).all(1) for a in anchors]
    assert all(0 < w.sum() < len(w) for w in within)
    expected = slow_vlr(
        torch.cat([a[w] for a, w in zip(anchors, within)]).tolist(),
        [int(w.sum()) for w in within],
        gts[0].bboxes.tolist(),
        *(9, 0.25, 'iof_diou'),
    )
    region, within = torch.cat([level.region for level in levels]), torch.cat(within)
    torch.testing.assert_close(region[within], torch.tensor(expected))
    assert region[within].any() and not region[~within].any()


def test_double_precision_is_kept_and_half_is_not():
    maps = torch.randn(1, 6, 2, 2, dtype=torch.float64)
    assert torch.equal(per_anchor(maps, 3), maps.permute(0, 2, 3, 1).reshape(-1, 3))
    assert per_anchor(maps.bfloat16(), 3).dtype == torch.float32


def test_repeating_the_batch_doubles_sums_and_leaves_means():
    once, twice = (random_case(batch=b) for b in (1, 2))
    one, two = hook_losses(*once), hook_losses(*twice)
    for name, factor in (('loss_ld', 2), ('loss_ld_vlr', 2), ('loss_kd', 1)):
        assert sum(two[name]).item() == pytest.approx(factor * sum(one[name]).item(), rel=1e-4)
    normal = hook_losses(*twice, normalize='num_imgs')
    assert sum(normal['loss_ld']).item() == pytest.approx(sum(one['loss_ld']).item(), rel=1e-4)


def test_images_and_batches_without_objects():
    module, outs, teacher, gts = random_case(batch=2)
    empty = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    some = hook_losses(module, outs, teacher, [gts[0], empty])
    assert sum(some['loss_ld']).item() > 0
    none = hook_losses(module, outs, teacher, [empty, empty], kd_vlr=dict())
    total = sum(sum(v) for v in none.values())
    assert total.item() == 0 and all(torch.isfinite(v) for values in none.values() for v in values)
    total.backward()
    assert all(
        m.grad is not None for m in outs[1]
    )  # DDP still sees every parameter of the box branch


@pytest.mark.parametrize('method', ['finegrained', 'fitnet', 'decouple', 'gibox'])
def test_imitation_of_necks(method):
    module, outs, teacher_outs, gts = random_case(batch=2)
    student = [torch.randn(2, 5, 64 // s, 64 // s, requires_grad=True) for s in (8, 16)]
    teacher = Outputs(module, teacher_outs)
    teacher.features = [torch.randn_like(f) for f in student]
    metas = [dict(img_shape=(64, 64), pad_shape=(64, 64))] * 2
    recorder = Recorder(module, 'student')
    recorder.watch(['get_targets()'])
    recorder.arm()
    module.loss_by_feat(*outs[:2], gts, metas)
    records = Outputs(module, outs, recorder['get_targets()'])
    recorder.disarm()
    records.records['neck'] = student
    samples = [DetDataSample(metainfo=m) for m in metas]
    for sample, gt in zip(samples, gts):
        sample.gt_instances = gt
    hook = LocalizationDistillationHook(
        teacher=dict(config='none'), ld=None, vlr=None, kd=None, imitation=dict(method=method)
    )
    losses = hook.losses(records, teacher, torch.zeros(1), samples)
    assert set(losses) == {'loss_im'} and len(losses['loss_im']) == 2
    sum(losses['loss_im']).backward()
    touched = student[0].grad.abs().sum(1) > 0
    assert touched.any() and (method == 'decouple') == bool(touched.all())
    teacher.features = [f[:, :3] for f in teacher.features]
    with pytest.raises(ValueError, match='imitation compares the necks cell by cell'):
        hook.losses(records, teacher, torch.zeros(1), samples)


def test_unified_region_is_an_average():
    module, outs, teacher, gts = random_case()
    one = hook_losses(module, outs, teacher, gts, region='unified')
    assert set(one) == {'loss_ld', 'loss_kd'}
    module, outs, teacher, gts = random_case(batch=2)
    two = hook_losses(module, outs, teacher, gts, region='unified')
    assert sum(two['loss_ld']).item() == pytest.approx(sum(one['loss_ld']).item(), rel=1e-4)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(region='vlr'), 'region must be'),
        (dict(normalize='mean'), 'normalize must be'),
        (dict(imitation=dict(method='all')), 'imitation needs a method'),
        (dict(ld=dict(wieght=1)), r"ld takes \['T', 'norm', 'weight'\], got \['wieght'\]"),
        (dict(begin=3, end=2), 'must be greater than begin'),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        LocalizationDistillationHook(teacher=dict(config='none'), **options)


@pytest.mark.parametrize(
    'stock, instead',
    [
        ('RetinaHead', 'mmextra.RetinaDistHead'),
        ('ATSSHead', 'mmextra.ATSSDistHead'),
        ('FCOSHead', 'mmextra.FCOSDistHead'),
        ('YOLOXHead', 'GFL family'),
    ],
)
def test_heads_without_distributions_are_refused(stock, instead):
    kind = dict(RetinaHead='retina', ATSSHead='atss', FCOSHead='fcos').get(stock)
    hook = LocalizationDistillationHook(teacher=dict(config='none'))
    if kind:
        cfg = golden_head(
            dict(
                kind=kind,
                kwargs=dict(rr=[(-1, 32), (32, 1e8)], spo=1, ratios=[1.0]),
                strides=[8, 16],
                num_classes=3,
                reg_max=8,
            )
        )
        cfg.pop('reg_max')
        head = MODELS.build({**cfg, 'type': f'mmdet.{stock}', '_scope_': 'mmdet'})
    else:
        head = MODELS.build(
            dict(type=f'mmdet.{stock}', num_classes=3, in_channels=8, _scope_='mmdet')
        )
    detector = torch.nn.Module()
    detector.bbox_head = head
    with pytest.raises(ValueError, match=instead):
        hook.check(detector, detector)


def detector_with(kind, **kwargs):
    """A module whose `bbox_head` is one of the heads of the golden files."""
    kwargs = dict(rr=[(-1, 32), (32, 1e8)], spo=1, ratios=[1.0], **kwargs)
    meta = dict(kind=kind, kwargs=kwargs, strides=[8, 16], num_classes=3, reg_max=8)
    detector = torch.nn.Module()
    detector.bbox_head = MODELS.build(golden_head(meta) | dict(_scope_='mmdet'))
    return detector


def test_other_anchors_are_refused():
    hook = LocalizationDistillationHook(teacher=dict(config='none'))
    same, other = detector_with('atss', obs=8), detector_with('atss', obs=4)
    hook.check(same, same)
    with pytest.raises(
        ValueError, match=r'agree in anchors: on level 0 .*\[\[-32.0, .*\[\[-16.0, '
    ):
        hook.check(same, other)
    # Points are in the middle of a cell, anchors at its corner.
    with pytest.raises(ValueError, match='agree in anchors'):
        hook.check(detector_with('fcos'), other)


def test_heads_without_anchors_are_refused_what_needs_anchors():
    fcos = detector_with('fcos')
    for options, message in (
        (dict(region='unified'), "region='unified' needs anchors"),
        (dict(imitation=dict(method='finegrained')), "'finegrained' needs anchors.*'fitnet'"),
    ):
        hook = LocalizationDistillationHook(teacher=dict(config='none'), **options)
        with pytest.raises(ValueError, match=message):
            hook.check(fcos, fcos)
    LocalizationDistillationHook(
        teacher=dict(config='none'), imitation=dict(method='fitnet')
    ).check(fcos, fcos)


def test_the_unified_region_is_refused_what_it_would_not_use():
    gfl = detector_with('gfl')
    for options, message in (
        (dict(kd_vlr=dict()), "kd_vlr is for region='main"),
        (dict(vlr=dict(weight=0.5, gamma=0.5)), r"vlr takes gamma alone .* got \['weight'\]"),
        (dict(vlr=dict(metric='diou')), r"got \['metric'\]"),
        (dict(vlr=dict(gamma=0.5), kd_vlr=dict(weight=0)), None),
        (dict(vlr=dict(weight=0)), None),
        (dict(vlr=None), None),
    ):
        hook = LocalizationDistillationHook(
            teacher=dict(config='none'), region='unified', **options
        )
        if message is None:
            hook.check(gfl, gfl)
        else:
            with pytest.raises(ValueError, match=message):
                hook.check(gfl, gfl)
        LocalizationDistillationHook(teacher=dict(config='none'), **options).check(gfl, gfl)


@pytest.mark.parametrize('name', ['gfl_r101', 'ld_gfl-r18_r101-teacher'])
def test_settings_on_voc(name):
    """Images are those of COCO, where the host's VOC configs have 1000x600; AP is over ten thresholds."""
    cfg = Config.fromfile(ROOT / f'configs/ld/{name}_fpn_4e_voc0712.py')
    repeated = cfg.train_dataloader.dataset
    assert repeated.times == 3 and cfg.train_dataloader.batch_size == 3
    pipelines = [d.pipeline for d in repeated.dataset.datasets]
    assert len(pipelines) == 2
    for pipeline in (*pipelines, cfg.val_dataloader.dataset.pipeline):
        assert [tuple(s.scale) for s in pipeline if s.type == 'Resize'] == [(1333, 800)]
    assert cfg.test_dataloader == cfg.val_dataloader
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert evaluator.iou_thrs == pytest.approx([0.5 + 0.05 * i for i in range(10)])
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (0.00375, 0.9, 1e-4)
    assert cfg.train_cfg.max_epochs == 4 and cfg.param_scheduler[-1].milestones == [3]


def test_fcos_head_refuses_normalised_boxes():
    with pytest.raises(ValueError, match='norm_on_bbox'):
        MODELS.build(
            dict(
                type='mmextra.FCOSDistHead',
                num_classes=3,
                in_channels=8,
                norm_on_bbox=True,
                _scope_='mmdet',
            )
        )


def test_distances_do_not_see_autocast():
    head = detector_with('atss').bbox_head
    logits = [m.bfloat16() for m in random_case('atss')[1][1]]
    plain = head.distances([m.float() for m in logits])
    with torch.autocast('cpu', torch.bfloat16):
        under = head.distances(logits)
    assert all(torch.equal(a, b) for a, b in zip(plain, under))


@pytest.mark.parametrize('head', ['atss', 'fcos', 'retina'])
def test_distribution_heads_predict_boxes(head):
    """A distribution that is sure of distance d gives a box d strides around the centre."""
    module, outs, _, _ = random_case(head)
    module.eval()
    logits = [torch.full_like(m, -50.0) for m in outs[1]]
    for m in logits:
        m.reshape(1, -1, 9, *m.shape[-2:])[:, :, 2] = 50
    scores = [torch.full_like(m, -9.0) for m in outs[0]]
    scores[0][0, 1, 3, 4] = 9
    used = (scores, logits) if head == 'retina' else (scores, logits, [m + 9 for m in outs[2]])
    cfg = ConfigDict(
        nms_pre=10,
        score_thr=0.3,
        min_bbox_size=0,
        max_per_img=5,
        nms=dict(type='nms', iou_threshold=0.5),
    )
    found = module.predict_by_feat(*used, batch_img_metas=[dict(img_shape=(64, 64))], cfg=cfg)[0]
    x, y = (4 * 8, 3 * 8) if head != 'fcos' else (4 * 8 + 4, 3 * 8 + 4)
    expected = torch.tensor([[x - 16.0, y - 16.0, x + 16.0, y + 16.0]])
    torch.testing.assert_close(found.bboxes, expected, rtol=0, atol=1e-3)
    assert found.labels.tolist() == [1]
