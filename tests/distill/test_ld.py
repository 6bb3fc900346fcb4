"""LD: the authors' losses and regions, the numbers of the paper, and the hook on a stock detector."""

import pytest
import torch
from mmengine.structures import InstanceData

from mmextra.distill.base import Recorder
from mmextra.distill.ld import LocalizationDistillationHook
from mmextra.distill.ld.hook import (
    Level,
    dense_levels,
    general_instances,
    imitation_loss,
)
from mmextra.distill.ld.regions import imitation_region
from mmextra.registry import MODELS

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
