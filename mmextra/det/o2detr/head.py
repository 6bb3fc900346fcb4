"""The head of O2DETR: classes and oriented boxes of every query."""

import math
from typing import List, Optional, Tuple

import torch
from mmcv.cnn import Linear
from mmdet.models.dense_heads import DeformableDETRHead
from mmdet.models.layers import inverse_sigmoid
from mmdet.utils import InstanceList, reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmextra.ops.precision import at_least_float32
from mmextra.ops.rotated import ANGLE_DIFFERENCES, oriented_l1, regularize_boxes
from mmextra.registry import MODELS
from mmextra.structures.oriented_boxes import OrientedBoxes

# For each image, the indices of matched queries and of the objects they are matched with.
Matches = List[Tuple[Tensor, Tensor]]


@MODELS.register_module()
class O2DETRHead(DeformableDETRHead):
    """Predicts classes and boxes (cx, cy, w, h, t) of every query, all between 0 and 1.

    cx and w are fractions of the image's width, cy and h of its height, and the angle is ``(t - 1/2) pi``,
    clockwise. Boxes have ``w >= h`` (le90) when training is through; predictions are brought to that form.

    Args:
        num_classes (int): Classes.
        angle_diff (str): How the L1 loss compares t: ``'periodic'``, ``min(|d|, 1 - |d|)``, as angles half a turn
            apart are the same; or ``'plain'``, ``|d|``. ``mmextra.OrientedL1Cost``, for matching, has the
            same option. Defaults to ``'periodic'``.
        square_aware (bool): Whether the L1 loss of t is weighted with ``1 - h / w`` of the object, as the angle
            of a square means nothing; an option of the cost too. Defaults to False.
        predict_angle (bool): If False, every angle is held at 0: the same network with horizontal boxes, a
            baseline. Defaults to True.
        loss_cls (dict): Loss of the class scores, of sigmoids. Defaults to focal loss with weight 2.
        loss_bbox (dict): Loss of the differences of the five numbers, elementwise such as ``L1Loss``. Defaults
            to that, with weight 5.
        loss_iou (dict): Loss of boxes in pixels, ``mmextra.OrientedIoULoss`` or ``mmextra.OrientedGDLoss``.
            Defaults to the former, with weight 2.
        **kwargs: Further arguments of stock ``DeformableDETRHead``.

    Raises:
        ValueError: If ``angle_diff`` is unknown, or the classification loss is not of sigmoids.
    """

    def __init__(
        self,
        *args,
        angle_diff: str = 'periodic',
        square_aware: bool = False,
        predict_angle: bool = True,
        loss_cls: dict = dict(
            type='mmdet.FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0
        ),
        loss_iou: dict = dict(type='mmextra.OrientedIoULoss', loss_weight=2.0),
        **kwargs,
    ) -> None:
        if angle_diff not in ANGLE_DIFFERENCES:
            raise ValueError(f'angle_diff must be one of {ANGLE_DIFFERENCES}, got {angle_diff!r}')
        self.angle_diff = angle_diff
        self.square_aware = square_aware
        self.predict_angle = predict_angle
        super().__init__(*args, loss_cls=loss_cls, loss_iou=loss_iou, **kwargs)
        if not self.loss_cls.use_sigmoid:
            raise ValueError(
                'O2DETRHead scores each class by a sigmoid: set loss_cls.use_sigmoid=True'
            )

    def _init_layers(self) -> None:
        super()._init_layers()
        for branch in self.reg_branches:  # one and the same if predictions are shared
            branch[-1] = Linear(self.embed_dims, 5)

    def init_weights(self) -> None:
        """As stock: last regression layers zero, w and h small; and angles zero."""
        super().init_weights()
        for branch in self.reg_branches:
            nn.init.zeros_(branch[-1].bias[4:])

    def forward(self, hidden_states: Tensor, references: List[Tensor]) -> Tuple[Tensor, Tensor]:
        """Predict from the states of all decoder layers.

        Args:
            hidden_states (Tensor): (layers, B, Q, C).
            references (list[Tensor]): What each layer's boxes are relative to: points (B, Q, 2) or boxes
                (B, Q, 4), between 0 and 1; the last entry, after the last layer, is not used.

        Returns:
            tuple: Class logits (layers, B, Q, classes) and boxes (layers, B, Q, 5), in float32 at least.
        """
        scores, boxes = [], []
        for states, reference, classify, regress in zip(
            hidden_states, references, self.cls_branches, self.reg_branches
        ):
            scores.append(at_least_float32(classify(states)))
            raw = at_least_float32(regress(states))
            known = reference.shape[-1]
            offset = inverse_sigmoid(at_least_float32(reference))
            box = torch.cat([raw[..., :known] + offset, raw[..., known:]], -1).sigmoid()
            if not self.predict_angle:
                box = torch.cat([box[..., :4], torch.full_like(box[..., 4:], 0.5)], -1)
            boxes.append(box)
        return torch.stack(scores), torch.stack(boxes)

    def loss_by_feat_single(
        self,
        cls_scores: Tensor,
        bbox_preds: Tensor,
        batch_gt_instances: InstanceList,
        batch_img_metas: List[dict],
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Losses of one decoder layer.

        Args:
            cls_scores (Tensor): Class logits, (B, Q, classes).
            bbox_preds (Tensor): Normalised boxes, (B, Q, 5).
            batch_gt_instances (list[:obj:`InstanceData`]): ``bboxes`` (n, 5) in pixels, ``labels`` (n,).
            batch_img_metas (list[dict]): ``img_shape``, (height, width), is used.

        Returns:
            tuple: ``loss_cls``, ``loss_bbox`` and ``loss_iou``, divided by the number of objects.
        """
        matches = self.match(cls_scores, bbox_preds, batch_gt_instances, batch_img_metas)
        labels, targets = gather_targets(matches, batch_gt_instances, cls_scores)
        matched = len(targets)
        num_pos = reduce_mean(cls_scores.new_tensor([matched])).clamp(min=1).item()
        loss_cls = self.loss_cls(
            cls_scores.flatten(0, 1),
            labels.flatten(),
            avg_factor=num_pos if self.sync_cls_avg_factor else max(matched, 1),
        )

        boxes = self.to_pixels(bbox_preds, batch_img_metas)
        boxes = torch.cat([b[queries] for b, (queries, _) in zip(boxes, matches)])  # (n, 5)
        factors = self._factors(bbox_preds, batch_img_metas)
        factors = torch.cat([f.expand(len(m[0]), 4) for f, m in zip(factors, matches)])
        difference = oriented_l1(boxes, targets, factors, self.angle_diff, self.square_aware)
        loss_bbox = self.loss_bbox(difference, torch.zeros_like(difference), avg_factor=num_pos)
        loss_iou = self.loss_iou(boxes, targets, avg_factor=num_pos)
        return loss_cls, loss_bbox, loss_iou

    @torch.no_grad()
    def match(
        self,
        cls_scores: Tensor,
        bbox_preds: Tensor,
        batch_gt_instances: InstanceList,
        batch_img_metas: List[dict],
    ) -> Matches:
        """Match queries with objects, image by image.

        Args:
            cls_scores (Tensor): Class logits, (B, Q, classes).
            bbox_preds (Tensor): Normalised boxes, (B, Q, 5).
            batch_gt_instances (list[:obj:`InstanceData`]): ``bboxes`` (n, 5) in pixels, ``labels`` (n,).
            batch_img_metas (list[dict]): ``img_shape`` is used.

        Returns:
            list[tuple]: Indices of queries, ascending, and of their objects, for each image.

        Raises:
            ValueError: If the objects' boxes do not have five numbers.
        """
        matches = []
        pixels = self.to_pixels(bbox_preds, batch_img_metas)
        for scores, boxes, truth, meta in zip(
            cls_scores, pixels, batch_gt_instances, batch_img_metas
        ):
            if truth.bboxes.shape[-1] != 5:
                raise ValueError(
                    f'O2DETRHead needs boxes (cx, cy, w, h, angle), got {truth.bboxes.shape[-1]} numbers a '
                    "box: load them with LoadAnnotations(with_bbox=True, box_type='obox') from an "
                    'oriented data set, such as mmextra.OrientedDOTADataset'
                )
            predicted = InstanceData(scores=scores, bboxes=boxes)
            truth = InstanceData(labels=truth.labels, bboxes=regularize_boxes(truth.bboxes))
            assigned = self.assigner.assign(predicted, truth, meta).gt_inds
            queries = (assigned > 0).nonzero()[:, 0]
            matches.append((queries, assigned[queries] - 1))
        return matches

    def to_pixels(self, bbox_preds: Tensor, batch_img_metas: List[dict]) -> Tensor:
        """Boxes (B, Q, 5) in pixels of the resized images, angles in radians."""
        return _to_pixels(bbox_preds, self._factors(bbox_preds, batch_img_metas))

    @staticmethod
    def _factors(like: Tensor, metas: List[dict]) -> Tensor:
        """(width, height, width, height) of each image, (B, 1, 4)."""
        shapes = [meta['img_shape'][:2] for meta in metas]
        return like.new_tensor([[[w, h, w, h]] for h, w in shapes])

    def predict_by_feat(
        self,
        all_layers_cls_scores: Tensor,
        all_layers_bbox_preds: Tensor,
        batch_img_metas: List[dict],
        rescale: bool = False,
    ) -> InstanceList:
        """Detections of the last decoder layer; there is no NMS.

        Args:
            all_layers_cls_scores (Tensor): Class logits, (layers, B, Q, classes).
            all_layers_bbox_preds (Tensor): Normalised boxes, (layers, B, Q, 5).
            batch_img_metas (list[dict]): ``img_shape``, and ``scale_factor`` for ``rescale``.
            rescale (bool): Whether to give boxes in pixels of the original images. Defaults to False.

        Returns:
            list[:obj:`InstanceData`]: ``scores``, ``labels``, ``bboxes`` (n, 5) in le90, for each image.
        """
        boxes = self.to_pixels(all_layers_bbox_preds[-1], batch_img_metas)
        return [
            top_detections(*inputs, (self.test_cfg or {}).get('max_per_img'), rescale)
            for inputs in zip(all_layers_cls_scores[-1], boxes, batch_img_metas)
        ]


def gather_targets(
    matches: Matches, batch_gt_instances: InstanceList, cls_scores: Tensor
) -> Tuple[Tensor, Tensor]:
    """Labels of all queries (B, Q), the number of classes where nothing was matched, and the boxes
    of matched objects of all images, (n, 5), in pixels and le90."""
    labels = cls_scores.new_full(cls_scores.shape[:2], cls_scores.shape[2], dtype=torch.long)
    boxes = []
    for row, (queries, objects), truth in zip(labels, matches, batch_gt_instances):
        row[queries] = truth.labels[objects]
        boxes.append(truth.bboxes[objects])
    return labels, regularize_boxes(torch.cat(boxes).to(cls_scores.dtype))


def top_detections(
    cls_scores: Tensor, boxes: Tensor, meta: dict, max_per_img: Optional[int], rescale: bool
) -> InstanceData:
    """The highest scores over queries and classes of one image.

    Args:
        cls_scores (Tensor): Class logits, (Q, classes).
        boxes (Tensor): Boxes in pixels, (Q, 5).
        meta (dict): ``scale_factor``, (of widths, of heights), is used for ``rescale``.
        max_per_img (int, optional): How many; one for each query if None.
        rescale (bool): Whether to give boxes in pixels of the original image.

    Returns:
        :obj:`InstanceData`: ``scores``, ``labels`` and ``bboxes`` (n, 5) in le90.
    """
    count = min(max_per_img or len(cls_scores), cls_scores.numel())
    scores, indices = cls_scores.sigmoid().flatten().topk(count)
    boxes = OrientedBoxes(boxes[indices // cls_scores.shape[1]])
    if rescale:
        width_factor, height_factor = meta['scale_factor'][:2]
        boxes.rescale_((1 / width_factor, 1 / height_factor))
    return InstanceData(
        scores=scores,
        labels=indices % cls_scores.shape[1],
        bboxes=boxes.regularize('le90').tensor,
    )


def _to_pixels(boxes: Tensor, factors: Tensor) -> Tensor:
    """Normalised boxes (..., 5) in pixels, given (width, height, width, height)."""
    return torch.cat([boxes[..., :4] * factors, (boxes[..., 4:] - 0.5) * math.pi], -1)
