"""METR's head: is there an object of my category here, and where.

Language-aware Multiple Datasets Detection Pretraining for DETRs (arXiv 2304.03580). Registered here:
``METRHead``.
"""

from typing import List, Optional, Tuple

import torch
from mmdet.models.dense_heads import DINOHead
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from mmdet.utils import InstanceList
from mmengine.structures import InstanceData
from torch import Tensor

from mmextra.det.metr.assigner import GroupHungarianAssigner
from mmextra.ops.precision import at_least_float32
from mmextra.registry import MODELS


@MODELS.register_module()
class METRHead(DINOHead):
    """DINO's head with a single logit for each query.

    The category of a query travels in the metainfo of its image, as ``groups``, so that the stock
    losses of decoder, encoder and denoising queries need not know of it.

    Args:
        num_classes (int): What stock configs say of their data set. A query answers one question,
            whatever the number: there is one logit. Defaults to 1.
        train_cfg (dict, optional): With the ``assigner``, a ``GroupHungarianAssigner``, which is also
            the default. None in testing.
        options: Arguments of the stock head; ``loss_cls`` must be of the sigmoid kind, and
            ``test_cfg`` may hold ``cem_power``, the power a of (9), default 0.

    Raises:
        ValueError: If ``loss_cls`` is a softmax loss, or the assigner does not match by category.
    """

    def __init__(
        self,
        num_classes: int = 1,
        train_cfg: Optional[dict] = dict(assigner=dict(type='mmextra.GroupHungarianAssigner')),
        **options,
    ) -> None:
        super().__init__(num_classes=1, train_cfg=train_cfg, **options)
        if train_cfg and not isinstance(self.assigner, GroupHungarianAssigner):
            raise ValueError(
                f'train_cfg.assigner is a {type(self.assigner).__name__}, which knows no categories of '
                "queries: set train_cfg=dict(assigner=dict(type='mmextra.GroupHungarianAssigner'))"
            )
        if not self.loss_cls.use_sigmoid:
            raise ValueError(
                'loss_cls must have use_sigmoid=True: a query answers yes or no, as in '
                "dict(type='FocalLoss', use_sigmoid=True)"
            )

    def _init_layers(self) -> None:
        """Without the stock class branch of the encoder: its tokens are scored by category names."""
        super()._init_layers()
        self.cls_branches = self.cls_branches[:-1]

    # Training

    def loss(
        self,
        hidden_states: Tensor,
        references: List[Tensor],
        enc_outputs_class: Tensor,
        enc_outputs_coord: Tensor,
        batch_data_samples: SampleList,
        groups: Tensor,
        targets: InstanceList,
        dn_meta: Optional[dict] = None,
    ) -> dict:
        """Losses of all decoder layers, of the encoder's proposals and of the denoising queries.

        Args:
            hidden_states (Tensor): (layers, B, Q + N, C), Q denoising queries first.
            references (list[Tensor]): For each layer (B, Q + N, 4).
            enc_outputs_class (Tensor): Logit of the chosen (token, category) pairs, (B, N, 1).
            enc_outputs_coord (Tensor): Their boxes (cx, cy, w, h), in [0, 1], (B, N, 4).
            batch_data_samples (list[DetDataSample]): The batch.
            groups (Tensor): Category that each query asks about, (B, N).
            targets (list[InstanceData]): Boxes of the categories that are asked about.
            dn_meta (dict, optional): Of the denoising queries. Defaults to None: there are none.
        """
        metas = [dict(s.metainfo, groups=g) for s, g in zip(batch_data_samples, groups)]
        if dn_meta is not None:
            for meta, positive in zip(metas, dn_meta['positive']):
                meta['dn_positive'] = positive
        outs = (*self(hidden_states, references), enc_outputs_class, enc_outputs_coord)
        return self.loss_by_feat(*map(at_least_float32, outs), targets, metas, dn_meta)

    def get_targets(
        self,
        cls_scores_list: List[Tensor],
        bbox_preds_list: List[Tensor],
        batch_gt_instances: InstanceList,
        batch_img_metas: List[dict],
    ) -> tuple:
        """The stock targets; losses are over the number of boxes, matched or not (7)."""
        *targets, _, num_neg = super().get_targets(
            cls_scores_list, bbox_preds_list, batch_gt_instances, batch_img_metas
        )
        return (*targets, sum(len(gts) for gts in batch_gt_instances), num_neg)

    def _get_targets_single(
        self, cls_score: Tensor, bbox_pred: Tensor, gt_instances: InstanceData, img_meta: dict
    ) -> tuple:
        """Targets of one image: label 0 for queries that have found a box, 1 for the others."""
        height, width = img_meta['img_shape']
        factor = bbox_pred.new_tensor([width, height, width, height])
        queries = InstanceData(
            scores=cls_score,
            bboxes=bbox_cxcywh_to_xyxy(bbox_pred) * factor,
            groups=img_meta['groups'],
        )
        matched = self.assigner.assign(queries, gt_instances, img_meta).gt_inds
        pos_inds, neg_inds = (matched > 0).nonzero().squeeze(1), (matched == 0).nonzero().squeeze(1)
        labels = torch.full_like(matched, self.num_classes)
        labels[pos_inds] = 0
        bbox_targets, bbox_weights = torch.zeros_like(bbox_pred), torch.zeros_like(bbox_pred)
        bbox_targets[pos_inds] = bbox_xyxy_to_cxcywh(
            gt_instances.bboxes[matched[pos_inds] - 1] / factor
        ).to(bbox_pred)
        bbox_weights[pos_inds] = 1
        label_weights = bbox_pred.new_ones(len(bbox_pred))
        return labels, label_weights, bbox_targets, bbox_weights, pos_inds, neg_inds

    def _get_dn_targets_single(
        self, gt_instances: InstanceData, img_meta: dict, dn_meta: dict
    ) -> tuple:
        """As in DINO, but a query with a changed label has no box to find (8)."""
        _, label_weights, bbox_targets, bbox_weights, *_ = super()._get_dn_targets_single(
            gt_instances, img_meta, dn_meta
        )
        positive = img_meta['dn_positive']
        labels = torch.where(positive, 0, self.num_classes)
        pos_inds, neg_inds = positive.nonzero().squeeze(1), (~positive).nonzero().squeeze(1)
        return (
            labels,
            label_weights,
            bbox_targets,
            bbox_weights * positive[:, None],
            pos_inds,
            neg_inds,
        )

    @staticmethod
    def split_outputs(
        all_layers_cls_scores: Tensor, all_layers_bbox_preds: Tensor, dn_meta: Optional[dict]
    ) -> Tuple[Optional[Tensor], ...]:
        """The stock split; without denoising queries all are matched."""
        if dn_meta is None:
            return all_layers_cls_scores, all_layers_bbox_preds, None, None
        return DINOHead.split_outputs(all_layers_cls_scores, all_layers_bbox_preds, dn_meta)

    # Testing

    def predict(
        self,
        hidden_states: Tensor,
        references: List[Tensor],
        batch_data_samples: SampleList,
        groups: Tensor,
        category_logits: Tensor,
        rescale: bool = True,
    ) -> InstanceList:
        """Detections of a batch (9).

        Args:
            hidden_states (Tensor): (layers, B, N, C).
            references (list[Tensor]): For each layer (B, N, 4).
            batch_data_samples (list[DetDataSample]): The batch.
            groups (Tensor): Category that each query asks about, (B, N).
            category_logits (Tensor): Scores of the category extraction module, (B, K).
            rescale (bool): Whether boxes are those of the file instead of the shown image. Defaults
                to True.

        Returns:
            list[InstanceData]: ``bboxes`` (x1, y1, x2, y2; pixels), ``scores`` and ``labels``, best
            first.
        """
        metas = [
            dict(s.metainfo, groups=g, category_scores=c.sigmoid())
            for s, g, c in zip(batch_data_samples, groups, category_logits)
        ]
        outs = map(at_least_float32, self(hidden_states, references))
        return self.predict_by_feat(*outs, batch_img_metas=metas, rescale=rescale)

    def _predict_by_feat_single(
        self, cls_score: Tensor, bbox_pred: Tensor, img_meta: dict, rescale: bool = True
    ) -> InstanceData:
        """Detections of one image; the label of a query is its category."""
        groups, power = img_meta['groups'], self.test_cfg.get('cem_power', 0)
        scores = cls_score.sigmoid().squeeze(-1) * img_meta['category_scores'][groups] ** power
        count = min(self.test_cfg.get('max_per_img', len(scores)), len(scores))
        scores, best = scores.topk(count)
        height, width = img_meta['img_shape']
        boxes = bbox_cxcywh_to_xyxy(bbox_pred[best]) * bbox_pred.new_tensor(
            [width, height, width, height]
        )
        boxes[:, 0::2].clamp_(min=0, max=width)
        boxes[:, 1::2].clamp_(min=0, max=height)
        if rescale:
            boxes /= boxes.new_tensor(img_meta['scale_factor']).repeat(1, 2)
        return InstanceData(bboxes=boxes, scores=scores, labels=groups[best])
