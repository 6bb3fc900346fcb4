"""Pipeline steps for oriented boxes; all others are mmdet's."""

from typing import Optional, Sequence

import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness
from mmengine.logging import print_log

from mmextra.registry import TRANSFORMS
from mmextra.structures.oriented_boxes import OrientedBoxes


@TRANSFORMS.register_module()
class OrientedRandomRotate(BaseTransform):
    """Turn image and oriented boxes about the middle of the image; its size stays.

    Boxes whose centre leaves the image are dropped.

    Required keys: img, img_shape, gt_bboxes (OrientedBoxes), gt_bboxes_labels, gt_ignore_flags.
    Modified keys: img, gt_bboxes, gt_bboxes_labels, gt_ignore_flags, homography_matrix.

    Args:
        prob (float): Chance of turning. Defaults to 0.5.
        angle_range (float): Angles are drawn from ``[-angle_range, angle_range]``, in degrees.
            Defaults to 180.
        rect_classes (Sequence[int], optional): Labels of classes that have no direction. An image
            with one of them is turned by a multiple of 90 degrees: 90, 180, -90 or -180.
    """

    def __init__(
        self,
        prob: float = 0.5,
        angle_range: float = 180,
        rect_classes: Optional[Sequence[int]] = None,
    ) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f'prob must be between 0 and 1, got {prob}')
        if not 0 < angle_range <= 180:
            raise ValueError(f'angle_range must be in (0, 180] degrees, got {angle_range}')
        self.prob, self.angle_range, self.rect_classes = prob, angle_range, rect_classes

    @cache_randomness
    def _is_turned(self) -> bool:
        return np.random.rand() < self.prob

    @cache_randomness
    def _angle(self, quarters: bool) -> float:
        if quarters:
            return float(np.random.choice([90, 180, -90, -180]))
        return self.angle_range * (2 * np.random.rand() - 1)

    def transform(self, results: dict) -> dict:
        """Turn one sample."""
        boxes = results.get('gt_bboxes')
        if not isinstance(boxes, OrientedBoxes):
            raise TypeError(
                'OrientedRandomRotate needs gt_bboxes of type OrientedBoxes, got '
                f"{type(boxes).__name__}: use LoadAnnotations with box_type='obox' before it"
            )
        if not self._is_turned():
            return results
        quarters = bool(np.isin(results['gt_bboxes_labels'], self.rect_classes or ()).any())
        return self.turn(results, self._angle(quarters))

    def turn(self, results: dict, angle: float) -> dict:
        """Turn one sample by an angle in degrees, positive = clockwise."""
        height, width = results['img'].shape[:2]
        results['img'] = mmcv.imrotate(results['img'], angle)
        boxes = results['gt_bboxes']
        # The middle of the pixel grid, which mmcv turns about, in coordinates where pixels are squares.
        center = (width / 2, height / 2)
        boxes.rotate_(center, angle)
        inside = boxes.is_inside((height, width)).numpy()
        results['gt_bboxes'] = boxes[inside].regularize()
        for key in ('gt_bboxes_labels', 'gt_ignore_flags'):
            results[key] = results[key][inside]
        matrix = rotation_matrix(center, angle) @ results.get('homography_matrix', np.eye(3))
        results['homography_matrix'] = matrix.astype(np.float32)
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(prob={self.prob}, angle_range={self.angle_range}, '
            f'rect_classes={self.rect_classes})'
        )


def rotation_matrix(center: Sequence[float], angle: float) -> np.ndarray:
    """The homography (3, 3) that turns about ``center``, in degrees, positive = clockwise."""
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    x, y = center
    return np.array(
        [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y], [0, 0, 1]]
    )


@TRANSFORMS.register_module()
class PolygonToOriented(BaseTransform):
    """Replace boxes by the smallest oriented ones around the instance masks, which are dropped.

    Makes an oriented set of any with outlines, such as COCO: place it after
    ``LoadAnnotations(with_bbox=True, with_mask=True, poly2mask=False)``. Sides are at least one
    pixel long.

    Required keys: gt_masks (PolygonMasks or BitmapMasks). Modified keys: gt_bboxes.
    """

    def __init__(self) -> None:
        self.has_warned = False

    def transform(self, results: dict) -> dict:
        """Convert one sample."""
        if 'gt_masks' not in results:
            raise KeyError(
                'PolygonToOriented needs gt_masks: use LoadAnnotations with with_mask=True, '
                'poly2mask=False before it'
            )
        boxes = OrientedBoxes.from_instance_masks(results.pop('gt_masks'))
        sides = boxes.tensor[:, 2:4]
        flat = int((sides.amin(1) < 1).sum())
        if flat and not self.has_warned:
            self.has_warned = True  # not for every image of every epoch
            print_log(
                f'PolygonToOriented: {flat} objects thinner than a pixel in '
                f'{results.get("img_path", "an image")}: made one pixel wide, as will others be',
                logger='current',
            )
        boxes.tensor[:, 2:4] = torch.clamp(sides, min=1)
        results['gt_bboxes'] = boxes
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'
