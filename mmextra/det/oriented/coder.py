"""Oriented boxes as offsets from other oriented boxes."""

import math
from typing import Optional, Sequence, Tuple, Union

import torch
from mmdet.models.task_modules.coders.base_bbox_coder import BaseBBoxCoder
from mmdet.structures.bbox import BaseBoxes, get_box_tensor
from torch import Tensor

from mmextra.ops.precision import in_common_type
from mmextra.ops.rotated import unit_axes, wrap_angles
from mmextra.registry import TASK_UTILS


@TASK_UTILS.register_module()
class OrientedDeltaCoder(BaseBBoxCoder):
    """Codes a box as (dx, dy, dw, dh, da) from a proposal.

    The offset of the centre is measured along the proposal's own axes, in units of its sides; sides
    as logarithms of ratios; the angle as a difference in radians, wrapped to [-90, 90) degrees.

    Args:
        target_means (Sequence[float]): Subtracted from the code. Defaults to zeros.
        target_stds (Sequence[float]): Divide the code. Defaults to (.1, .1, .2, .2, .1).
        wh_ratio_clip (float): Largest ratio of sides, and one over the smallest, that is decoded.
            Defaults to 62.5, mmdet's ``1000 / 16``.
    """

    encode_size = 5

    def __init__(
        self,
        target_means: Sequence[float] = (0.0, 0.0, 0.0, 0.0, 0.0),
        target_stds: Sequence[float] = (0.1, 0.1, 0.2, 0.2, 0.1),
        wh_ratio_clip: float = 1000 / 16,
    ) -> None:
        super().__init__()
        for name, values in (('target_means', target_means), ('target_stds', target_stds)):
            if len(values) != 5:
                raise ValueError(
                    f'{name} needs five numbers, for dx, dy, dw, dh and the angle; got {values}'
                )
        if min(target_stds) <= 0:
            raise ValueError(f'target_stds must be positive, got {target_stds}')
        self.means, self.stds = tuple(target_means), tuple(target_stds)
        self.wh_ratio_clip = wh_ratio_clip

    def encode(
        self, bboxes: Union[Tensor, BaseBoxes], gt_bboxes: Union[Tensor, BaseBoxes]
    ) -> Tensor:
        """The codes (N, 5) of ``gt_bboxes`` (N, 5) seen from ``bboxes`` (N, 5), at least float32."""
        bboxes, gt_bboxes = in_common_type(get_box_tensor(bboxes), get_box_tensor(gt_bboxes))
        sides = bboxes[..., 2:4].clamp(min=1e-3)
        offset = gt_bboxes[..., :2] - bboxes[..., :2]
        along, across = unit_axes(bboxes)
        shift = torch.stack([(offset * along).sum(-1), (offset * across).sum(-1)], -1) / sides
        ratio = (gt_bboxes[..., 2:4].clamp(min=1e-3) / sides).log()
        angle = wrap_angles(gt_bboxes[..., 4:] - bboxes[..., 4:], -math.pi / 2)
        code = torch.cat([shift, ratio, angle], -1)
        return (code - code.new_tensor(self.means)) / code.new_tensor(self.stds)

    def decode(
        self,
        bboxes: Union[Tensor, BaseBoxes],
        pred_bboxes: Tensor,
        max_shape: Optional[Tuple[int, int]] = None,
    ) -> Tensor:
        """The boxes (..., 5) with the codes ``pred_bboxes`` (..., 5) seen from ``bboxes`` (..., 5), at
        least float32.

        ``max_shape`` is not used: oriented boxes are not clipped.
        """
        bboxes, pred_bboxes = in_common_type(get_box_tensor(bboxes), pred_bboxes)
        code = pred_bboxes * pred_bboxes.new_tensor(self.stds) + pred_bboxes.new_tensor(self.means)
        along, across = unit_axes(bboxes)
        shift = code[..., :2] * bboxes[..., 2:4]
        center = bboxes[..., :2] + shift[..., :1] * along + shift[..., 1:] * across
        limit = abs(math.log(self.wh_ratio_clip))
        sides = bboxes[..., 2:4] * code[..., 2:4].clamp(-limit, limit).exp()
        return torch.cat([center, sides, bboxes[..., 4:] + code[..., 4:]], -1)
