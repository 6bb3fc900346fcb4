"""Oriented boxes as an mmdet box type, ``'obox'``.

A box is ``(cx, cy, w, h, angle)``, the angle in radians, positive = clockwise on a screen. The type
lives beside mmdet's ``'hbox'`` and does not touch ``'rbox'`` and ``'qbox'``, which belong to
mmrotate; conventions are those of mmrotate 1.x.
"""

from typing import Iterator, Sequence, Tuple, Union

import cv2
import numpy as np
import torch
from mmdet.structures.bbox import (
    BaseBoxes,
    get_box_tensor,
    register_box,
    register_box_converter,
)
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from torch import Tensor

from mmextra.ops.rotated import (
    enclosing_boxes,
    oriented_corners,
    points_in_boxes,
    regularize_boxes,
    rotated_iou,
)

DIRECTIONS = ('horizontal', 'vertical', 'diagonal')


@register_box('obox')
class OrientedBoxes(BaseBoxes):
    """Oriented boxes.

    Args:
        data (Tensor | np.ndarray | Sequence): Boxes, (..., 5).
        dtype (torch.dtype, optional): Data type of the boxes.
        device (str | torch.device, optional): Device of the boxes.
        clone (bool): Whether to copy the data. Defaults to True.
    """

    box_dim = 5

    def regularize(self, pattern: str = 'le90') -> 'OrientedBoxes':
        """The same rectangles with angles in the range of ``pattern``: ``'le90'`` (the project's
        default), ``'le135'`` or ``'oc'``; see :func:`mmextra.ops.rotated.regularize_boxes`."""
        return type(self)(regularize_boxes(self.tensor, pattern), clone=False)

    @property
    def corners(self) -> Tensor:
        """Corners, (..., 4, 2)."""
        return oriented_corners(self.tensor)

    @property
    def centers(self) -> Tensor:
        """Centres, (..., 2)."""
        return self.tensor[..., :2]

    @property
    def widths(self) -> Tensor:
        """Sides along the angle, (...)."""
        return self.tensor[..., 2]

    @property
    def heights(self) -> Tensor:
        """Sides across the angle, (...)."""
        return self.tensor[..., 3]

    @property
    def angles(self) -> Tensor:
        """Angles in radians, (...)."""
        return self.tensor[..., 4]

    @property
    def areas(self) -> Tensor:
        """Areas, (...)."""
        return self.widths * self.heights

    def flip_(self, img_shape: Tuple[int, int], direction: str = 'horizontal') -> None:
        """Mirror the boxes, in place.

        Args:
            img_shape (tuple[int]): Height and width of the image.
            direction (str): ``'horizontal'``, ``'vertical'`` or ``'diagonal'``.
        """
        if direction not in DIRECTIONS:
            raise ValueError(f'flip direction must be one of {DIRECTIONS}, got {direction!r}')
        cx, cy, width, height, angle = self.tensor.unbind(-1)
        if direction != 'vertical':
            cx = img_shape[1] - cx
        if direction != 'horizontal':
            cy = img_shape[0] - cy
        if direction != 'diagonal':
            angle = -angle
        self.tensor = torch.stack([cx, cy, width, height, angle], -1)

    def translate_(self, distances: Tuple[float, float]) -> None:
        """Shift the boxes by (x, y) pixels, in place."""
        self.tensor = self._with_centers(self.centers + self.tensor.new_tensor(distances))

    def clip_(self, img_shape: Tuple[int, int]) -> None:
        """Do nothing: an oriented box that is cut by the image is no rectangle any more."""

    def rotate_(self, center: Tuple[float, float], angle: float) -> None:
        """Turn the boxes about a point, in place.

        Args:
            center (tuple[float]): The point (x, y).
            angle (float): In degrees, positive = clockwise.
        """
        matrix = self.tensor.new_tensor(cv2.getRotationMatrix2D(tuple(center), -angle, 1))
        turned = self._with_centers(self.centers @ matrix[:, :2].T + matrix[:, 2])
        turned[..., 4] += np.deg2rad(angle)
        self.tensor = turned

    def project_(self, homography_matrix: Union[Tensor, np.ndarray]) -> None:
        """Map the boxes by a homography (3, 3), in place: the smallest rectangles around the mapped
        corners, in the range of ``'le90'``."""
        matrix = torch.as_tensor(homography_matrix, dtype=self.dtype, device=self.device)
        corners = self.corners
        mapped = torch.cat([corners, torch.ones_like(corners[..., :1])], -1) @ matrix.T
        mapped = mapped[..., :2] / mapped[..., 2:]
        self.tensor = quads_to_boxes(mapped.flatten(-2))

    def rescale_(self, scale_factor: Tuple[float, float]) -> None:
        """Scale the image that the boxes are in by (x, y) factors, in place.

        With unequal factors a rectangle becomes a parallelogram; its shear is dropped.
        """
        sx, sy = scale_factor
        cx, cy, width, height, angle = self.tensor.unbind(-1)
        cos, sin = angle.cos(), angle.sin()
        self.tensor = torch.stack(
            [
                cx * sx,
                cy * sy,
                width * torch.hypot(sx * cos, sy * sin),
                height * torch.hypot(sx * sin, sy * cos),
                torch.atan2(sx * sin, sy * cos),
            ],
            -1,
        )

    def resize_(self, scale_factor: Tuple[float, float]) -> None:
        """Scale widths and heights by two factors, in place; centres and angles stay."""
        factors = self.tensor.new_tensor([1, 1, *scale_factor, 1])
        self.tensor = self.tensor * factors

    def is_inside(
        self,
        img_shape: Tuple[int, int],
        all_inside: bool = False,
        allowed_border: int = 0,
    ) -> Tensor:
        """Which boxes have their centre inside the image; boolean (...).

        Args:
            img_shape (tuple[int]): Height and width of the image.
            all_inside (bool): Of no effect, as in mmrotate: an oriented box is never clipped.
            allowed_border (int): How far outside a centre may be. Defaults to 0.
        """
        height, width = img_shape
        cx, cy = self.centers.unbind(-1)
        return (
            (cx <= width + allowed_border)
            & (cy <= height + allowed_border)
            & (cx >= -allowed_border)
            & (cy >= -allowed_border)
        )

    def find_inside_points(
        self, points: Tensor, is_aligned: bool = False, eps: float = 0.01
    ) -> Tensor:
        """Which points are inside which boxes.

        Args:
            points (Tensor): Points, (P, 2).
            is_aligned (bool): Whether point i is compared with box i only. Defaults to False.
            eps (float): Distance from the sides that a point must keep. Defaults to 0.01.

        Returns:
            Tensor: Boolean, (P, N), or (N, ) if aligned.
        """
        boxes = self.tensor
        if boxes.dim() != 2:
            raise ValueError(f'find_inside_points needs boxes (N, 5), got {tuple(boxes.shape)}')
        if not is_aligned:
            points, boxes = points[:, None], boxes[None]
        elif len(points) != len(boxes):
            raise ValueError(f'{len(points)} points cannot be aligned with {len(boxes)} boxes')
        return points_in_boxes(points, boxes, margin=eps)

    @staticmethod
    def overlaps(
        boxes1: BaseBoxes,
        boxes2: BaseBoxes,
        mode: str = 'iou',
        is_aligned: bool = False,
        eps: float = 1e-6,  # noqa: ARG004  (mmdet passes it)
    ) -> Tensor:
        """IoU of two sets of boxes of any type; see :func:`oriented_overlaps`. ``eps`` is not
        used."""
        first, second = (b.convert_to('obox').tensor for b in (boxes1, boxes2))
        return oriented_overlaps(first, second, mode, is_aligned)

    @staticmethod
    def from_instance_masks(masks: Union[BitmapMasks, PolygonMasks]) -> 'OrientedBoxes':
        """The smallest rectangles around instance masks; zeros for an empty one."""
        boxes = []
        for mask in masks.masks:
            if isinstance(masks, BitmapMasks):
                points = np.argwhere(mask)[:, ::-1]  # x is the column
            elif isinstance(masks, PolygonMasks):
                points = np.concatenate(
                    [np.reshape(p, (-1, 2)) for p in mask] or [np.empty((0, 2))]
                )
            else:
                raise TypeError(
                    f'masks must be BitmapMasks or PolygonMasks, got {type(masks).__name__}'
                )
            boxes.append(smallest_box(points) if len(points) else np.zeros(5, np.float32))
        return OrientedBoxes(regularize_boxes(torch.from_numpy(_rows(boxes, 5))), clone=False)

    def _with_centers(self, centers: Tensor) -> Tensor:
        return torch.cat([centers, self.tensor[..., 2:]], -1)


@register_box_converter('obox', 'hbox')
def oriented_to_horizontal(boxes: Tensor) -> Tensor:
    """The smallest horizontal boxes (..., 4) around oriented ones (..., 5)."""
    return enclosing_boxes(boxes)


@register_box_converter('hbox', 'obox')
def horizontal_to_oriented(boxes: Tensor) -> Tensor:
    """Horizontal boxes (..., 4) as oriented ones (..., 5) with angle 0."""
    center = (boxes[..., :2] + boxes[..., 2:]) / 2
    return torch.cat(
        [center, boxes[..., 2:] - boxes[..., :2], torch.zeros_like(boxes[..., :1])], -1
    )


def quads_to_boxes(
    quads: Union[Tensor, np.ndarray, Sequence],
    pattern: str = 'le90',
) -> Tensor:
    """The smallest rectangles around quadrilaterals.

    Args:
        quads (Tensor | np.ndarray | Sequence): Four corners each, (..., 8), in any order.
        pattern (str): Range of the angles. Defaults to ``'le90'``.

    Returns:
        Tensor: Boxes (..., 5), on the device of the quadrilaterals.
    """
    quads = torch.as_tensor(quads)
    if quads.dim() == 1 and quads.numel() == 0:  # an empty list
        quads = quads.reshape(0, 8)
    dtype = quads.dtype if quads.is_floating_point() else torch.float32
    points = quads.detach().cpu().float().numpy().reshape(-1, 4, 2)
    boxes = torch.from_numpy(_rows([smallest_box(p) for p in points], 5))
    # OpenCV changed its range of angles in 4.5.1: only this makes results the same everywhere.
    boxes = regularize_boxes(boxes, pattern)
    return boxes.to(quads.device, dtype).reshape(*quads.shape[:-1], 5)


def boxes_to_quads(boxes: Tensor) -> Tensor:
    """Corners of boxes (..., 5) as (x1, y1, ..., x4, y4), shape (..., 8)."""
    return oriented_corners(boxes).flatten(-2)


def smallest_box(points: np.ndarray) -> np.ndarray:
    """The smallest rectangle (cx, cy, w, h, angle) around points (P, 2), of no particular angle
    range."""
    (cx, cy), (width, height), degrees = cv2.minAreaRect(
        np.ascontiguousarray(points, dtype=np.float32)
    )
    return np.array([cx, cy, width, height, np.deg2rad(degrees)], np.float32)


@torch.no_grad()
def oriented_overlaps(
    boxes1: Union[Tensor, BaseBoxes],
    boxes2: Union[Tensor, BaseBoxes],
    mode: str = 'iou',
    is_aligned: bool = False,
) -> Tensor:
    """IoU of two sets of oriented boxes, without gradient.

    Only pairs whose horizontal boxes meet are looked at, which is most of the difference in time to
    mmcv's ``box_iou_rotated``. The other difference is in boxes that are equal up to rounding, where
    mmcv's operator is often wrong by a third or more.

    Args:
        boxes1, boxes2 (Tensor | OrientedBoxes): Boxes, (M, 5) and (N, 5).
        mode (str): ``'iou'``, or ``'iof'``: over the area of the first. Defaults to ``'iou'``.
        is_aligned (bool): Whether box i is compared with box i only. Defaults to False.

    Returns:
        Tensor: (M, N) in float32, or (M, ) if aligned.
    """
    if mode not in ('iou', 'iof'):
        raise ValueError(f"overlaps have the mode 'iou' or 'iof', got {mode!r}")
    boxes1, boxes2 = (safe_boxes(get_box_tensor(b)) for b in (boxes1, boxes2))
    if is_aligned:
        if len(boxes1) != len(boxes2):
            raise ValueError(f'{len(boxes1)} boxes cannot be aligned with {len(boxes2)} boxes')
        return rotated_iou(boxes1, boxes2, mode)
    result = boxes1.new_zeros(len(boxes1), len(boxes2))
    for row, col in near_pairs(enclosing_boxes(boxes1), enclosing_boxes(boxes2)):
        result[row, col] = rotated_iou(boxes1[row], boxes2[col], mode)
    return result


def oriented_nms(boxes: Tensor, scores: Tensor, iou_thr: float) -> Tensor:
    """Indices of the boxes (N, 5) that overlap no surer kept one by more than ``iou_thr``, surest
    first.

    mmcv's ``nms_rotated`` misses some boxes that are copies up to rounding.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = safe_boxes(boxes[order])
    hulls = enclosing_boxes(boxes)
    kept = np.ones(len(boxes), bool)
    found = [torch.zeros(2, 0, dtype=torch.long, device=boxes.device)]
    for row, col in near_pairs(hulls, hulls):
        later = col > row
        row, col = row[later], col[later]
        found.append(torch.stack([row, col])[:, rotated_iou(boxes[row], boxes[col]) > iou_thr])
    rows, cols = torch.cat(found, 1).cpu().numpy()
    # Pairs are sorted by their surer box.
    for start, end in zip(*(np.searchsorted(rows, np.unique(rows), s) for s in ('left', 'right'))):
        if kept[rows[start]]:
            kept[cols[start:end]] = False
    return order[torch.from_numpy(kept).to(order.device)]


def safe_boxes(boxes: Tensor) -> Tensor:
    """Boxes in float32 with sides of at least 1e-3, and no numbers above 1e7."""
    boxes = boxes.detach().float()
    limit = 1e7
    center, sides = boxes[..., :2].clamp(-limit, limit), boxes[..., 2:4].clamp(1e-3, limit)
    return torch.cat([center, sides, boxes[..., 4:]], -1)


def near_pairs(
    first: Tensor, second: Tensor, at_once: int = 1 << 16
) -> Iterator[Tuple[Tensor, Tensor]]:
    """Indices of the pairs of horizontal boxes (M, 4) and (N, 4) that meet, in order, some rows of
    the first at a time."""
    rows = max(1, at_once // max(1, len(second)))
    for start in range(0, len(first), rows):
        piece = first[start : start + rows, None]
        meets = (piece[..., :2] <= second[:, 2:]) & (piece[..., 2:] >= second[:, :2])
        row, col = meets.all(-1).nonzero(as_tuple=True)
        if len(row):
            yield row + start, col


def _rows(boxes: Sequence[np.ndarray], width: int) -> np.ndarray:
    return np.stack(boxes) if len(boxes) else np.zeros((0, width), np.float32)
