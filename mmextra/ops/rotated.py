"""Oriented rectangles as tensors: corners, angle ranges, intersections and Gaussians.

A box is ``(cx, cy, w, h, angle)``, shape (..., 5): centre and sides in pixels, the angle in radians,
positive = clockwise on a screen (y points down). It is the horizontal box ``w x h`` turned about
its centre.
"""

import math
from typing import Tuple

import torch
from torch import Tensor

from mmextra.ops.precision import in_common_type

# Where the angles of each pattern start. The long side is the width in the first two.
PATTERN_START = dict(le90=-math.pi / 2, le135=-math.pi / 4, oc=-math.pi / 2)
ANGLE_DIFFERENCES = ('periodic', 'plain')
GAUSSIAN_DISTANCES = ('gwd', 'kld')
# How far apart two borders count as one, relative to the longest side of a pair of boxes.
BORDER_MARGIN = 1e-9


def unit_axes(boxes: Tensor) -> Tuple[Tensor, Tensor]:
    """Directions (..., 2) in which width and height of ``boxes`` (..., 5) are measured."""
    cos, sin = boxes[..., 4].cos(), boxes[..., 4].sin()
    return torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)


def oriented_corners(boxes: Tensor) -> Tensor:
    """Corners (..., 4, 2) of ``boxes`` (..., 5).

    In the order c+v1+v2, c+v1-v2, c-v1-v2, c-v1+v2, where v1 and v2 are the half axes.
    """
    along, across = unit_axes(boxes)
    center, v1, v2 = boxes[..., :2], along * boxes[..., 2:3] / 2, across * boxes[..., 3:4] / 2
    return torch.stack([center + v1 + v2, center + v1 - v2, center - v1 - v2, center - v1 + v2], -2)


def enclosing_boxes(boxes: Tensor) -> Tensor:
    """The smallest horizontal boxes (x1, y1, x2, y2), shape (..., 4), around ``boxes`` (..., 5)."""
    cos, sin = boxes[..., 4].cos().abs(), boxes[..., 4].sin().abs()
    width, height = boxes[..., 2] / 2, boxes[..., 3] / 2
    half = torch.stack([width * cos + height * sin, width * sin + height * cos], -1)
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], -1)


def axis_aligned(boxes: Tensor) -> Tensor:
    """Boxes (..., 5) as (x1, y1, x2, y2), turned back to angle 0.

    Dense detectors assign anchors by these, and the region of oriented LD is found with them.
    """
    center, half = boxes[..., :2], boxes[..., 2:4] / 2
    return torch.cat([center - half, center + half], -1)


def wrap_angles(angles: Tensor, start: float, period: float = math.pi) -> Tensor:
    """The angles shifted by whole periods into ``[start, start + period)``."""
    return torch.remainder(angles - start, period) + start


def regularize_boxes(boxes: Tensor, pattern: str = 'le90') -> Tensor:
    """The same rectangles, described with an angle in the range of ``pattern``.

    Args:
        boxes (Tensor): Boxes, (..., 5).
        pattern (str): ``'le90'``: width >= height, angle in [-90, 90) degrees. ``'le135'``: width
            >= height, angle in [-45, 135) degrees. ``'oc'``, OpenCV's old range: angle in [-90, 0)
            degrees. Defaults to ``'le90'``.

    Returns:
        Tensor: Boxes, (..., 5).
    """
    if pattern not in PATTERN_START:
        raise ValueError(f'angle pattern must be one of {[*PATTERN_START]}, got {pattern!r}')
    start = PATTERN_START[pattern]
    center, (width, height, angle) = boxes[..., :2], boxes[..., 2:].unbind(-1)
    if pattern == 'oc':
        angle = wrap_angles(angle, start)
        swap = angle >= 0
        angle = torch.where(swap, angle - math.pi / 2, angle)
    else:
        swap = ~(width > height)
        angle = wrap_angles(torch.where(swap, angle + math.pi / 2, angle), start)
    width, height = torch.where(swap, height, width), torch.where(swap, width, height)
    return torch.cat([center, torch.stack([width, height, angle], -1)], -1)


def distances_to_sides(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances of points from the four sides of boxes, positive inside.

    Args:
        points (Tensor): (..., 2).
        boxes (Tensor): (..., 5), of a shape that broadcasts with that of the points.

    Returns:
        Tensor: (..., 4).
    """
    along, across = unit_axes(boxes)
    offset = points - boxes[..., :2]
    x, y = (offset * along).sum(-1), (offset * across).sum(-1)
    width, height = boxes[..., 2] / 2, boxes[..., 3] / 2
    return torch.stack([width - x, width + x, height - y, height + y], -1)


def points_in_boxes(points: Tensor, boxes: Tensor, margin: float = 0.0) -> Tensor:
    """Whether points (..., 2) are inside boxes (..., 5), at least ``margin`` from their sides; a
    negative one lets them be outside."""
    return distances_to_sides(points, boxes).amin(-1) >= margin


# Intersection over union


def rotated_iou(pred: Tensor, target: Tensor, mode: str = 'iou') -> Tensor:
    """IoU of pairs of boxes, differentiable in all ten numbers.

    In plain torch on any device, and exact to float32 also for boxes that are nearly equal. mmcv's
    operator for CUDA, ``diff_iou_rotated_2d``, is not: it loses corners that two boxes have in
    common once coordinates reach hundreds of pixels, and under autocast turns corners in half
    precision.

    Args:
        pred (Tensor): Boxes, (..., 5).
        target (Tensor): Boxes, of a shape that broadcasts with it.
        mode (str): ``'iou'``, or ``'iof'``: the intersection over the area of ``pred``. Defaults to
            ``'iou'``.

    Returns:
        Tensor: (...) in [0, 1], at least float32; 0, with gradient 0, where boxes do not meet.
    """
    if mode not in ('iou', 'iof'):
        raise ValueError(f"the mode of overlaps is 'iou' or 'iof', got {mode!r}")
    pred, target = torch.broadcast_tensors(*in_common_type(pred, target))
    shape = pred.shape[:-1]
    pred, target = pred.reshape(-1, 5), target.reshape(-1, 5)
    intersection = intersection_area(pred, target)
    area = pred[:, 2] * pred[:, 3]
    if mode == 'iou':
        area = area + target[:, 2] * target[:, 3] - intersection
    return (intersection / area.clamp(min=torch.finfo(area.dtype).tiny)).clamp(0, 1).reshape(shape)


def intersection_area(pred: Tensor, target: Tensor) -> Tensor:
    """Area of the intersection of pairs of boxes (N, 5), shape (N, ).

    Each side of a box adds to the border of the intersection the part of it that lies in the other
    box. By Green's theorem the area is half the sum of lengths of these parts times distances of
    the sides from the origin. The gradient is exact too: a side that moves outwards adds area in
    proportion to the length of its part. There are no corners of the intersection in this, which
    would move ever faster as two sides become parallel.
    """
    dtype = pred.dtype
    # In float32 the ends of nearly parallel sides would be far off.
    pred, target = pred.double(), target.double()
    unit = torch.cat([pred[:, 2:4], target[:, 2:4]], -1).detach().amax(-1, keepdim=True)
    unit = unit.clamp(min=torch.finfo(dtype).tiny)
    origin = target[:, :2].detach()
    first, second = (
        torch.cat([(b[:, :2] - origin) / unit, b[:, 2:4] / unit, b[:, 4:]], -1)
        for b in (pred, target)
    )
    # The margins let a border that both boxes have in common count once.
    area = border_term(first, second, BORDER_MARGIN) + border_term(second, first, -BORDER_MARGIN)
    return (area.clamp(min=0) * unit[:, 0].square()).to(dtype)


def border_term(boxes: Tensor, others: Tensor, margin: float) -> Tensor:
    """What the sides of ``boxes`` (N, 5) contribute to the area of their intersections with
    ``others`` (N, 5), the latter larger by ``margin`` on each side; (N, )."""
    center, half = boxes[:, None, :2], boxes[:, 2:4]
    along, across = unit_axes(boxes)
    normals = torch.stack([along, across, -along, -across], 1)  # (N, 4, 2)
    tangents = normals.roll(-1, 1)
    reach, extent = half.repeat(1, 2) / 2, half.flip(-1).repeat(1, 2) / 2  # (N, 4)
    with torch.no_grad():
        middles = center + reach[..., None] * normals
        axes = torch.stack(unit_axes(others), -1)  # (N, 2, 2), one axis a column
        # A point at position s of a side has the coordinates `offset + s * slope` in the other box.
        offset = coordinates(middles - others[:, None, :2], axes)  # (N, 4, 2)
        slope = coordinates(tangents, axes)
        slope = slope.where(slope != 0, torch.full_like(slope, torch.finfo(slope.dtype).tiny))
        limit = others[:, None, 2:4] / 2 + margin
        ends = torch.stack([(-limit - offset) / slope, (limit - offset) / slope])
        start = ends.amin(0).amax(-1).clamp(-extent, extent)
        end = ends.amax(0).amin(-1).clamp(-extent, extent)
        length = (end - start).clamp(min=0)
        points = middles + ((start + end) / 2)[..., None] * tangents
        area = (length * (reach + (normals * center).sum(-1))).sum(1) / 2
    if not (torch.is_grad_enabled() and boxes.requires_grad):
        return area
    distance = reach - (normals * (points - center)).sum(-1)
    return area + (length * (distance - distance.detach())).sum(1)


def coordinates(vectors: Tensor, axes: Tensor) -> Tensor:
    """Coordinates (N, P, 2) of vectors (N, P, 2) along the columns of ``axes`` (N, 2, 2)."""
    return (vectors[..., None] * axes[:, None]).sum(-2)


# Differences between boxes


def angle_difference(pred: Tensor, target: Tensor, mode: str = 'periodic') -> Tensor:
    """Absolute differences between angles, in units of 180 degrees.

    Args:
        pred, target (Tensor): Angles in radians, of shapes that broadcast.
        mode (str): ``'periodic'``: angles that differ by 180 degrees are the same, so the largest
            difference is 1/2. ``'plain'``: as they are. Defaults to ``'periodic'``.
    """
    if mode not in ANGLE_DIFFERENCES:
        raise ValueError(f'angle_diff must be one of {ANGLE_DIFFERENCES}, got {mode!r}')
    turns = (pred - target) / math.pi
    if mode == 'periodic':
        turns = turns - turns.detach().round()
    return turns.abs()


def oriented_l1(
    pred: Tensor,
    target: Tensor,
    factor: Tensor,
    angle_diff: str = 'periodic',
    square_aware: bool = False,
) -> Tensor:
    """Absolute differences of the five numbers of boxes, centre and sides relative to the image.

    Args:
        pred, target (Tensor): Boxes (..., 5) in pixels and radians, of shapes that broadcast.
        factor (Tensor): (W, H, W, H) of the image in pixels, (..., 4).
        angle_diff (str): See :func:`angle_difference`. Defaults to ``'periodic'``.
        square_aware (bool): Whether the angle counts less the more square the target is: times one
            less its short side over its long side. Defaults to False.

    Returns:
        Tensor: (..., 5); the last is the angle's, in units of 180 degrees.
    """
    sides = (pred[..., :4] - target[..., :4]).abs() / factor
    angle = angle_difference(pred[..., 4], target[..., 4], angle_diff)
    if square_aware:
        short, long = target[..., 2:4].aminmax(dim=-1)
        angle = angle * (1 - short / long.clamp(min=1e-6))
    return torch.cat([sides, angle[..., None]], -1)


# Gaussians


def oriented_gaussians(boxes: Tensor) -> Tuple[Tensor, Tensor]:
    """Boxes (..., 5) as Gaussians whose standard deviations are the half sides.

    Returns:
        tuple[Tensor]: Means (..., 2) and covariances (..., 2, 2).
    """
    axes = torch.stack(unit_axes(boxes), -1)  # (..., 2, 2), one axis a column
    half = boxes[..., None, 2:4].clamp(min=1e-7, max=1e7) / 2
    spread = axes * half
    # Not a matrix product: autocast would compute it in half precision.
    return boxes[..., :2], (spread[..., :, None, :] * spread[..., None, :, :]).sum(-1)


def gaussian_distance(
    pred: Tensor, target: Tensor, kind: str = 'gwd', alpha: float = 1.0
) -> Tensor:
    """Distance between boxes seen as Gaussians; it does not feel how a rectangle is described.

    Args:
        pred, target (Tensor): Boxes (..., 5), of shapes that broadcast. At least float32 is used.
        kind (str): ``'gwd'``: Wasserstein distance, divided by twice the mean size, so that it has
            no unit. ``'kld'``: square root of the Kullback-Leibler divergence of the target from
            the prediction. Defaults to ``'gwd'``.
        alpha (float): Weight of the shapes against the centres. Defaults to 1.

    Returns:
        Tensor: Distances >= 0, of the broadcast shape.
    """
    if kind not in GAUSSIAN_DISTANCES:
        raise ValueError(f'Gaussian distance must be one of {GAUSSIAN_DISTANCES}, got {kind!r}')
    pred, target = in_common_type(pred, target)
    (mean, cov), (other_mean, other_cov) = oriented_gaussians(pred), oriented_gaussians(target)
    offset = mean - other_mean
    # The determinants from the sides: exact also for long thin boxes.
    root = (pred[..., 2:4].prod(-1) / 4).clamp(min=1e-7)  # sqrt(det)
    other_root = (target[..., 2:4].prod(-1) / 4).clamp(min=1e-7)
    if kind == 'gwd':
        common = (root * other_root).clamp(min=1e-7**0.5)
        product = (cov * other_cov).sum((-1, -2))  # trace of the product: both are symmetric
        shape = trace(cov) + trace(other_cov)
        shape = shape - 2 * (product + 2 * common).clamp(min=1e-7).sqrt()
        distance = positive_sqrt(offset.square().sum(-1) + alpha**2 * shape)
        return distance / (2 * common.sqrt().sqrt())
    inverse = adjugate(cov) / root.square()[..., None, None]
    center = (offset[..., None, :] * inverse * offset[..., :, None]).sum((-1, -2)) / 2
    shape = (inverse * other_cov).sum((-1, -2)) / 2 + root.log() - other_root.log() - 1
    return positive_sqrt(center / alpha**2 + shape)


def positive_sqrt(value: Tensor) -> Tensor:
    """Square root of at least 1e-7, so that the gradient is finite."""
    return value.clamp(min=1e-7).sqrt()


def trace(matrices: Tensor) -> Tensor:
    """Trace (...) of (..., 2, 2) matrices."""
    return matrices[..., 0, 0] + matrices[..., 1, 1]


def adjugate(matrices: Tensor) -> Tensor:
    """Adjugate of symmetric (..., 2, 2) matrices: the inverse times the determinant."""
    (a, b), (_, d) = (row.unbind(-1) for row in matrices.unbind(-2))
    return torch.stack([torch.stack([d, -b], -1), torch.stack([-b, a], -1)], -2)
