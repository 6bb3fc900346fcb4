"""A dense head that predicts oriented boxes as distributions.

What GFL is for horizontal boxes: five numbers a box, each the expectation of a distribution, so that
oriented detectors can be distilled with LD (arXiv 2204.05957, section on oriented detectors).
"""

from typing import List, Optional, Sequence, Tuple

import torch
from mmdet.models.dense_heads import GFLHead
from mmdet.models.utils import filter_scores_and_topk
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmextra.ops.precision import at_least_float32
from mmextra.ops.rotated import axis_aligned, rotated_iou
from mmextra.registry import MODELS
from mmextra.structures.oriented_boxes import OrientedBoxes, horizontal_to_oriented


class BinExpectation(nn.Module):
    """Expectations of distributions over evenly spaced values, which differ from number to number.

    Args:
        ranges (Sequence[tuple[float]]): First and last value of each number.
        reg_max (int): There are ``reg_max + 1`` values.
    """

    def __init__(self, ranges: Sequence[Tuple[float, float]], reg_max: int) -> None:
        super().__init__()
        self.reg_max = reg_max
        values = torch.stack([torch.linspace(low, high, reg_max + 1) for low, high in ranges])
        self.register_buffer('values', values, persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Expectations (..., numbers) of logits (..., numbers * bins)."""
        # bfloat16 tells apart values 1/256 from each other: too coarse for boxes.
        dtype = torch.promote_types(logits.dtype, self.values.dtype)
        logits = logits.to(dtype).unflatten(-1, self.values.shape)
        return (logits.softmax(-1) * self.values).sum(-1)

    def positions(self, numbers: Tensor) -> Tensor:
        """Where numbers (..., numbers) are among the bins: 0 at the first, just below ``reg_max`` at
        the last, as the distribution focal loss takes them."""
        low, high = self.values[:, 0], self.values[:, -1]
        return ((numbers - low) / (high - low) * self.reg_max).clamp(0, self.reg_max - 0.01)


@MODELS.register_module()
class OrientedGFLHead(GFLHead):
    """GFL head for oriented boxes (cx, cy, w, h, angle).

    The five numbers are those of a delta coder, seen from a horizontal anchor. Anchors are assigned
    by the horizontal boxes with the objects' (cx, cy, w, h), the angle ignored, which is also how
    the region of oriented LD is found. The quality that class scores learn is the rotated IoU.

    Args:
        num_classes (int): Number of classes.
        in_channels (int): Channels of the feature maps.
        reg_max (int): Each distribution has ``reg_max + 1`` bins. Defaults to 8.
        delta_range (tuple[float]): Range of dx, dy, dw and dh. Defaults to (-2, 2).
        angle_range (tuple[float]): Range of the angle's delta, radians. Defaults to (-5, 2).
        bbox_coder (dict): Defaults to an ``OrientedDeltaCoder`` that does not scale its numbers.
        loss_bbox (dict): Loss between decoded boxes. Defaults to GWD; ``loss_type='kld'`` is the
            other published student.
        **kwargs: Those of the stock ``GFLHead``. ``test_cfg.nms`` is of ``type='nms_rotated'``.
    """

    box_numbers = 5

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        reg_max: int = 8,
        delta_range: Tuple[float, float] = (-2.0, 2.0),
        angle_range: Tuple[float, float] = (-5.0, 2.0),
        bbox_coder: dict = dict(
            type='mmextra.OrientedDeltaCoder', target_stds=(1.0, 1.0, 1.0, 1.0, 1.0)
        ),
        loss_bbox: dict = dict(type='mmextra.OrientedGDLoss', loss_type='gwd', loss_weight=2.0),
        **kwargs,
    ) -> None:
        for name, (low, high) in (('delta_range', delta_range), ('angle_range', angle_range)):
            if low >= high:
                raise ValueError(f'{name} must be (low, high), got {(low, high)}')
        super().__init__(
            num_classes,
            in_channels,
            reg_max=reg_max,
            bbox_coder=bbox_coder,
            loss_bbox=loss_bbox,
            **kwargs,
        )
        self.integral = BinExpectation([delta_range] * 4 + [angle_range], reg_max)

    def _init_layers(self) -> None:
        super()._init_layers()
        channels = self.box_numbers * (self.reg_max + 1)
        self.gfl_reg = nn.Conv2d(self.feat_channels, channels, 3, padding=1)

    def decode(self, anchors: Tensor, logits: Tensor) -> Tensor:
        """Boxes (N, 5) of distribution logits (N, 5 * bins), seen from horizontal anchors (N, 4)."""
        return self.bbox_coder.decode(horizontal_to_oriented(anchors), self.integral(logits))

    def _get_targets_single(
        self,
        flat_anchors: Tensor,
        valid_flags: Tensor,
        num_level_anchors: List[int],
        gt_instances: InstanceData,
        img_meta: dict,
        gt_instances_ignore: Optional[InstanceData] = None,
        unmap_outputs: bool = True,
    ) -> tuple:
        """Stock targets of one image, except that those of boxes are oriented boxes (A, 5)."""
        oriented = get_box_tensor(gt_instances.bboxes)
        if oriented.shape[-1] != 5:
            raise ValueError(
                f'OrientedGFLHead needs boxes of five numbers, got {oriented.shape[-1]}: use '
                "LoadAnnotations with box_type='obox' on an oriented data set"
            )
        upright = InstanceData(bboxes=axis_aligned(oriented), labels=gt_instances.labels)
        ignored = None
        if gt_instances_ignore is not None:
            ignored = InstanceData(bboxes=axis_aligned(get_box_tensor(gt_instances_ignore.bboxes)))
        targets = super()._get_targets_single(
            *(flat_anchors, valid_flags, num_level_anchors, upright, img_meta, ignored),
            unmap_outputs=unmap_outputs,
        )
        anchors, labels, sampled = targets[0], targets[1], targets[7]
        positive = ((labels >= 0) & (labels < self.num_classes)).nonzero()[:, 0]
        boxes = anchors.new_zeros(len(anchors), 5)
        boxes[positive] = oriented[sampled.pos_assigned_gt_inds].to(boxes.dtype)
        return (*targets[:3], boxes, *targets[4:])

    def loss_by_feat_single(
        self,
        anchors: Tensor,
        cls_score: Tensor,
        bbox_pred: Tensor,
        labels: Tensor,
        label_weights: Tensor,
        bbox_targets: Tensor,
        stride: Tuple[int],
        avg_factor: float,
    ) -> tuple:
        """Losses of one level: quality focal loss, box loss, distribution focal loss, and the sum of
        the weights that the last two are divided by."""
        anchors, boxes = anchors.reshape(-1, 4), bbox_targets.reshape(-1, 5)
        cls_score = cls_score.permute(0, 2, 3, 1).reshape(-1, self.cls_out_channels)
        logits = bbox_pred.permute(0, 2, 3, 1).reshape(-1, self.gfl_reg.out_channels)
        labels, label_weights = labels.reshape(-1), label_weights.reshape(-1)
        positive = ((labels >= 0) & (labels < self.num_classes)).nonzero()[:, 0]
        anchors, boxes, logits = anchors[positive], boxes[positive], logits[positive]

        decoded = self.decode(anchors, logits)
        quality = label_weights.new_zeros(labels.shape)
        quality[positive] = rotated_iou(decoded.detach(), boxes).to(quality.dtype)
        loss_cls = self.loss_cls(
            cls_score, (labels, quality), weight=label_weights, avg_factor=avg_factor
        )

        weight = cls_score.detach().sigmoid().amax(1)[positive].float()
        if len(positive) == 0:
            nothing = bbox_pred.sum() * 0
            return loss_cls, nothing, nothing, weight.sum()
        loss_bbox = self.loss_bbox(decoded, boxes, weight=weight, avg_factor=1.0)
        numbers = self.bbox_coder.encode(horizontal_to_oriented(anchors), boxes)
        loss_dfl = self.loss_dfl(
            logits.reshape(-1, self.reg_max + 1),
            self.integral.positions(numbers).reshape(-1),
            weight=weight.repeat_interleave(self.box_numbers),
            avg_factor=float(self.box_numbers),
        )
        return loss_cls, loss_bbox, loss_dfl, weight.sum()

    def _predict_by_feat_single(
        self,
        cls_score_list: List[Tensor],
        bbox_pred_list: List[Tensor],
        score_factor_list: List[Tensor],
        mlvl_priors: List[Tensor],
        img_meta: dict,
        cfg: dict,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> InstanceData:
        """Detections of one image, in the range ``'le90'``."""
        cfg = self.test_cfg if cfg is None else cfg
        found = []
        for cls_score, bbox_pred, anchors in zip(cls_score_list, bbox_pred_list, mlvl_priors):
            # NMS takes scores of the type of the boxes.
            scores = at_least_float32(cls_score)
            scores = scores.permute(1, 2, 0).reshape(-1, self.cls_out_channels).sigmoid()
            logits = bbox_pred.permute(1, 2, 0).reshape(-1, self.gfl_reg.out_channels)
            scores, labels, _, kept = filter_scores_and_topk(
                scores, cfg.score_thr, cfg.get('nms_pre', -1), dict(box=logits, anchor=anchors)
            )
            boxes = OrientedBoxes(self.decode(kept['anchor'], kept['box']), clone=False)
            found.append(InstanceData(bboxes=boxes.regularize(), scores=scores, labels=labels))
        return self._bbox_post_process(
            results=InstanceData.cat(found),
            cfg=cfg,
            rescale=rescale,
            with_nms=with_nms,
            img_meta=img_meta,
        )
