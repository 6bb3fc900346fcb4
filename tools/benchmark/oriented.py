"""Oriented boxes: IoU, matching and DOTA mAP on 2,000 x 2,000 boxes, beside mmcv's operator on all pairs
and a loop over the boxes of one side."""

from functools import partial

import numpy as np
import torch
from benchmark_case import Case
from mmcv.ops import box_iou_rotated
from mmdet.models.task_modules.assigners import HungarianAssigner
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import nn

from mmextra.det.oriented.metric import oriented_map
from mmextra.ops.rotated import oriented_l1, rotated_iou
from mmextra.structures.oriented_boxes import oriented_overlaps

COUNT = 2000
SIDE = 4000  # pixels of a large image of DOTA
CLASSES = 15


class Computes(nn.Module):
    """A function as a module, for the runner."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def boxes(device, shift: float = 0.0):
    """Vehicles and ships: 10 to 60 pixels long, up to ``shift`` pixels from where they are."""
    random = torch.Generator().manual_seed(0)
    numbers = torch.rand(COUNT, 5, generator=random)
    sides = torch.stack([10 + 50 * numbers[:, 2], 5 + 15 * numbers[:, 3]], 1)
    found = torch.cat([numbers[:, :2] * SIDE, sides, 3 * numbers[:, 4:] - 1.5], 1)
    return (found + shift * torch.rand(COUNT, 5, generator=random)).to(device)


def looped(a, b):
    """One box of the first set after the other."""
    return torch.cat([box_iou_rotated(row[None], b) for row in a])


def costs(iou, pred, gt):
    """The matching cost of O2DETR for boxes, with some way to compute the IoU."""
    factor = pred.new_full((4,), SIDE)
    return 5 * oriented_l1(pred[:, None], gt[None], factor).sum(-1) - 2 * iou(pred, gt)


def matched(iou, pred, gt):
    rows, columns = linear_sum_assignment(costs(iou, pred, gt).cpu())
    return torch.as_tensor(np.stack([rows, columns]))


def assigned(pred, gt):
    """The stock assigner with our costs."""
    assigner = HungarianAssigner(
        [
            dict(type='mmextra.OrientedL1Cost', weight=5.0),
            dict(type='mmextra.OrientedIoUCost', weight=2.0),
        ]
    )
    labels = torch.zeros(COUNT, dtype=torch.long, device=gt.device)
    found = assigner.assign(
        InstanceData(bboxes=pred),
        InstanceData(bboxes=gt, labels=labels),
        dict(img_shape=(SIDE, SIDE)),
    )
    return found.gt_inds


def average_precision(pred, gt):
    labels = torch.arange(COUNT) % CLASSES
    scores = torch.linspace(1, 0, COUNT)
    ignored = torch.zeros(COUNT, dtype=torch.bool)
    image = dict(
        pred=dict(bboxes=pred, scores=scores, labels=labels),
        gt=dict(bboxes=gt, labels=labels, ignored=ignored),
    )
    return torch.tensor(oriented_map([image], CLASSES)['ap'])


def average_precision_in_a_loop(iou, pred, gt):
    """The same, one detection after the other, as the definition reads."""
    labels, found = np.arange(COUNT) % CLASSES, []
    for label in range(CLASSES):
        chosen = labels == label
        overlaps = iou(pred[chosen], gt[chosen]).numpy()
        right, taken = [], set()
        for row in overlaps:
            nearest = int(row.argmax())
            right.append(row[nearest] >= 0.5 and nearest not in taken)
            if right[-1]:
                taken.add(nearest)
        right = np.cumsum(right)
        recalls, precisions = right / chosen.sum(), right / (1 + np.arange(len(right)))
        levels = np.linspace(0, 1, 11)
        found.append(np.mean([precisions[recalls >= v].max(initial=0) for v in levels]))
    return torch.tensor(found)


def cases(device: str = 'cpu'):
    def build(function, where=device):
        return Computes(function), (boxes(where, 8.0), boxes(where))

    every = dict(
        yardstick_name='mmcv box_iou_rotated, all pairs',
        reference_name='loop over boxes',
        memory=False,  # mmcv's operator makes tensors for every pair
    )
    return [
        Case(
            'rotated IoU, 2,000 x 2,000',
            ours=partial(build, oriented_overlaps),
            yardstick=partial(build, box_iou_rotated),
            reference=partial(build, looped),
            backward=False,
            **every,
        ),
        Case(
            'differentiable rotated IoU, 2,000 pairs',
            ours=partial(build, rotated_iou),
            yardstick=partial(build, partial(box_iou_rotated, aligned=True)),
            yardstick_name='mmcv box_iou_rotated, without gradient',
            backward=False,
        ),
        Case(
            'matching, 2,000 x 2,000',
            ours=partial(build, assigned),
            yardstick=partial(build, partial(matched, box_iou_rotated)),
            reference=partial(build, partial(matched, looped)),
            backward=False,
            **every,
        ),
        Case(
            'DOTA mAP, 2,000 x 2,000, 15 classes',
            ours=partial(build, average_precision, 'cpu'),
            yardstick=partial(build, partial(average_precision_in_a_loop, box_iou_rotated), 'cpu'),
            reference=partial(build, partial(average_precision_in_a_loop, looped), 'cpu'),
            backward=False,
            **every,
        ),
    ]
