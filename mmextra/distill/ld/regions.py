"""Where localization distillation happens: the regions of LD, as pure functions of anchors and
boxes."""

from typing import Sequence

import torch
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

VLR_METRICS = ('iof_diou', 'diou', 'iou')
IMITATION_METHODS = ('finegrained', 'fitnet', 'decouple', 'gibox')


def centers(boxes: Tensor) -> Tensor:
    """Centres (x, y), shape (..., 2), of boxes (x1, y1, x2, y2)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def center_penalty(anchors: Tensor, gts: Tensor) -> Tensor:
    """The penalty of DIoU, (A, G): squared centre distance over squared enclosing diagonal."""
    distance = (centers(anchors)[:, None] - centers(gts)[None]).square().sum(-1)
    top_left = torch.minimum(anchors[:, None, :2], gts[None, :, :2])
    bottom_right = torch.maximum(anchors[:, None, 2:], gts[None, :, 2:])
    return distance / (bottom_right - top_left).square().sum(-1).clamp(min=1e-6)


def vlr_weights(
    anchors: Tensor,
    num_level_anchors: Sequence[int],
    gts: Tensor,
    topk: int = 9,
    gamma: float = 0.25,
    metric: str = 'iof_diou',
    bounded: bool = True,
) -> Tensor:
    """Weights of the valuable localization region of one image (Section 3.3 of the paper).

    Each object has the threshold of ATSS, ``thr = mean + std`` of the IoUs of its candidates (the
    ``topk`` anchors of each level whose centres are nearest). An anchor is in the region of the
    object if ``gamma * thr <= X < thr``; its weight is the largest IoU with an object that it is in
    the region of.

    Args:
        anchors (Tensor): Anchors of all levels, (A, 4) as (x1, y1, x2, y2).
        num_level_anchors (Sequence[int]): How many of them each level has.
        gts (Tensor): Ground-truth boxes, (G, 4).
        topk (int): Candidates of each level. Defaults to 9.
        gamma (float): Lower bound of the region, as a fraction of the threshold. Defaults to 0.25.
        metric (str): What X is. ``'diou'`` is the paper's. ``'iof_diou'``, the default, is that of
            the published code and numbers: intersection over the area of the anchor, less the same
            penalty. ``'iou'`` has no penalty.
        bounded (bool): Whether the region ends at the threshold. False gives the single region of
            the journal version. Defaults to True.

    Returns:
        Tensor: (A, ) in [0, 1]; 0 is outside.
    """
    if metric not in VLR_METRICS:
        raise ValueError(f'vlr metric must be one of {VLR_METRICS}, got {metric!r}')
    if len(gts) == 0 or len(anchors) == 0:
        return anchors.new_zeros(len(anchors))
    ious = bbox_overlaps(anchors, gts)  # (A, G)
    distances = torch.cdist(
        centers(anchors), centers(gts), compute_mode='donot_use_mm_for_euclid_dist'
    )
    candidates, start = [], 0
    for count in num_level_anchors:
        level = distances[start : start + count]
        candidates.append(
            ious[start : start + count].gather(0, level.topk(min(topk, count), 0, largest=False)[1])
        )
        start += count
    candidates = torch.cat(candidates)
    threshold = candidates.mean(0) + candidates.std(0)  # (G, )
    if metric == 'iou':
        value = ious
    elif metric == 'diou':
        value = ious - center_penalty(anchors, gts)
    else:
        value = bbox_overlaps(anchors, gts, mode='iof') - center_penalty(anchors, gts)
    inside = value >= gamma * threshold
    if bounded:
        inside &= value < threshold
    return ious.where(inside, ious.new_zeros(())).amax(1)


def imitation_region(method: str, anchors: Tensor, gts: Tensor) -> Tensor:
    """Cells whose features are imitated in one image.

    Args:
        method (str): ``'finegrained'``: anchors whose IoU with an object exceeds half the largest
            IoU of any anchor with it. ``'fitnet'`` and ``'decouple'``: anchors whose centre is
            strictly inside an object.
        anchors (Tensor): Anchors of all levels, (A, 4).
        gts (Tensor): Ground-truth boxes, (G, 4).

    Returns:
        Tensor: Boolean, (A, ).
    """
    if len(gts) == 0:
        return anchors.new_zeros(len(anchors), dtype=torch.bool)
    if method == 'finegrained':
        ious = bbox_overlaps(anchors, gts)
        return (ious > 0.5 * ious.amax(0)).any(1)
    return points_inside(centers(anchors), gts)


def points_inside(points: Tensor, gts: Tensor) -> Tensor:
    """Which points (P, 2) lie strictly inside any of the boxes (G, 4); boolean (P, )."""
    if len(gts) == 0:
        return points.new_zeros(len(points), dtype=torch.bool)
    margins = torch.cat(
        [points[:, None] - gts[None, :, :2], gts[None, :, 2:] - points[:, None]], -1
    )
    return (margins.amin(-1) > 0).any(1)
