"""Group bipartite matching (METR): queries are matched with the boxes of their own category alone.

Language-aware Multiple Datasets Detection Pretraining for DETRs (arXiv 2304.03580). Registered here:
``GroupHungarianAssigner``.
"""

import logging
from typing import Optional, Sequence, Tuple, Union

import numpy as np
from mmdet.models.task_modules import AssignResult, HungarianAssigner
from mmengine.logging import print_log
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor, from_numpy, promote_types, zeros_like

from mmextra.ops.precision import at_least_float32
from mmextra.registry import TASK_UTILS


@TASK_UTILS.register_module()
class GroupHungarianAssigner(HungarianAssigner):
    """A Hungarian matching for each category between its queries and its boxes (7).

    The same as one matching with infinite costs across categories. Costs are computed once for all
    pairs; then each category that has boxes is matched by itself.

    Args:
        match_costs (list[dict] | dict): Costs on the single logit and on the boxes. Defaults to
            focal 2, L1 5 and GIoU 2.
    """

    def __init__(
        self,
        match_costs: Union[dict, Sequence[dict]] = (
            dict(type='mmdet.FocalLossCost', weight=2.0),
            dict(type='mmdet.BBoxL1Cost', weight=5.0, box_format='xywh'),
            dict(type='mmdet.IoUCost', iou_mode='giou', weight=2.0),
        ),
    ) -> None:
        super().__init__(match_costs if isinstance(match_costs, dict) else list(match_costs))
        self._told = False

    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        img_meta: Optional[dict] = None,
        **kwargs,
    ) -> AssignResult:
        """Match the queries of one image.

        Args:
            pred_instances (InstanceData): ``scores``, logits (N, 1), ``bboxes`` (N, 4; x1, y1, x2,
                y2; pixels) and ``groups``, the category that each query asks about (N,).
            gt_instances (InstanceData): ``bboxes`` (G, 4) and ``labels`` (G,).
            img_meta (dict, optional): Metainfo of the image; the costs need ``img_shape``.

        Returns:
            AssignResult: ``gt_inds`` (N,): 0 for background, else 1 + the index of the box;
            ``labels`` (N,): 0 for matched queries, else -1.

        Raises:
            ValueError: If the queries have no groups.
        """
        if 'groups' not in pred_instances:
            raise ValueError(
                'pred_instances must have `groups`, the category of each query: use the assigner '
                'with mmextra.METRHead'
            )
        gt_inds = zeros_like(pred_instances.groups)
        labels = gt_inds - 1
        if len(gt_instances) and len(pred_instances):
            query, box = self._match(pred_instances, gt_instances, img_meta)
            gt_inds[query], labels[query] = box + 1, 0
        return AssignResult(len(gt_instances), gt_inds, max_overlaps=None, labels=labels)

    def _match(self, pred_instances, gt_instances, img_meta) -> Tuple[Tensor, Tensor]:
        """Indices of matched queries and of their boxes."""
        boxes = gt_instances.bboxes
        boxes = boxes.to(promote_types(boxes.dtype, pred_instances.bboxes.dtype))
        binary = InstanceData(bboxes=boxes, labels=zeros_like(gt_instances.labels))
        cost = sum(
            match_cost(pred_instances=pred_instances, gt_instances=binary, img_meta=img_meta)
            for match_cost in self.match_costs
        )
        cost = at_least_float32(cost.detach()).cpu().numpy()  # (N, G)
        groups, labels = pred_instances.groups.cpu().numpy(), gt_instances.labels.cpu().numpy()
        pairs, left_over = [], 0
        for category in np.unique(labels):
            queries, boxes = np.flatnonzero(groups == category), np.flatnonzero(labels == category)
            row, column = linear_sum_assignment(cost[np.ix_(queries, boxes)])
            pairs.append((queries[row], boxes[column]))
            left_over += len(boxes) - len(row)
        if left_over and not self._told:
            self._told = True
            print_log(
                f'{left_over} of {len(labels)} boxes of {(img_meta or {}).get("img_path", "an image")} '
                'find no query of their category and are not learned. Where this is common, raise '
                'num_queries or lower num_categories. (Said once.)',
                'current',
                level=logging.WARNING,
            )
        query, box = (from_numpy(np.concatenate(part)) for part in zip(*pairs))
        device = gt_instances.labels.device
        return query.to(device), box.to(device)
