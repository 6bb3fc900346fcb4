"""The cascaded head of F-O2DETR: boxes refined from features pooled inside them."""

from typing import Dict, List, Optional, Sequence, Tuple

import torch
from mmcv.cnn import Linear
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.utils import ConfigType, InstanceList, reduce_mean
from mmengine.model import BaseModule, bias_init_with_prob, constant_init, xavier_init
from torch import Tensor, nn

from mmextra.det.o2detr.head import Matches, gather_targets, top_detections
from mmextra.engine.checkpoint import is_checkpoint_init
from mmextra.ops.rotated import regularize_boxes
from mmextra.registry import MODELS, TASK_UTILS


class OrientedRoIExtractor(SingleRoIExtractor):
    """Pools features inside oriented boxes, each on the level that fits its size.

    Args:
        embed_dims (int): Channels of the maps.
        strides (Sequence[int]): Strides of the levels, in pixels.
        roi_size (int): Cells along each side of what is pooled.
        finest_scale (float): A box of w x h pixels is pooled on level
            ``floor(log2(sqrt(w h) / finest_scale))``, clamped to the levels there are.
    """

    def __init__(
        self, embed_dims: int, strides: Sequence[int], roi_size: int, finest_scale: float
    ) -> None:
        # Angles are clockwise throughout the project; mmcv's default is the other way round.
        layer = dict(type='RoIAlignRotated', output_size=roi_size, sampling_ratio=2, clockwise=True)
        super().__init__(layer, embed_dims, list(strides), finest_scale)

    def map_roi_levels(self, rois: Tensor, num_levels: int) -> Tensor:
        """Levels (n,) of the boxes ``rois`` (n, 6), (image, cx, cy, w, h, angle)."""
        scale = (rois[:, 3] * rois[:, 4]).sqrt() / self.finest_scale
        return (scale + 1e-6).log2().floor().clamp(0, num_levels - 1).long()


@MODELS.register_module()
class O2DETRRefineHead(BaseModule):
    """Refines the boxes of a trained O2DETR, all queries' boxes of its last decoder layer.

    Features of 7x7 cells pooled from the encoder's memory inside each box, and the query's state
    projected to ``fc_channels``, go through two hidden layers to class logits and five deltas.
    Training takes the matching of the boxes that are refined; the final score is the refined one.

    Args:
        num_classes (int): Classes.
        embed_dims (int): Channels C of memory and queries. Defaults to 256.
        fc_channels (int): Width of the hidden layers. Defaults to 1024.
        roi_size (int): Cells along each side of what is pooled. Defaults to 7.
        strides (Sequence[int]): Strides of the levels of the memory. Defaults to (8, 16, 32, 64).
        finest_scale (float): Boxes below twice this size, in pixels, are pooled on the finest level.
            Defaults to 56.
        bbox_coder (dict): Defaults to ``mmextra.OrientedDeltaCoder``, with stds (.1, .1, .2, .2, .1).
        loss_cls (dict): Defaults to focal loss with weight 2.
        loss_bbox (dict): Loss of the deltas. Defaults to L1 with weight 1.
        test_cfg (dict, optional): ``max_per_img``; set by the detector.
        init_cfg (dict, optional): Defaults to None.
    """

    def __init__(
        self,
        num_classes: int,
        embed_dims: int = 256,
        fc_channels: int = 1024,
        roi_size: int = 7,
        strides: Sequence[int] = (8, 16, 32, 64),
        finest_scale: float = 56,
        bbox_coder: ConfigType = dict(type='mmextra.OrientedDeltaCoder'),
        loss_cls: ConfigType = dict(
            type='mmdet.FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0
        ),
        loss_bbox: ConfigType = dict(type='mmdet.L1Loss', loss_weight=1.0),
        test_cfg: Optional[dict] = None,
        init_cfg: Optional[dict] = None,
    ) -> None:
        super().__init__(init_cfg)
        self.test_cfg = test_cfg or {}
        self.extractor = OrientedRoIExtractor(embed_dims, strides, roi_size, finest_scale)
        self.query_fc = Linear(embed_dims, fc_channels)
        self.fcs = nn.Sequential(
            Linear(embed_dims * roi_size**2 + fc_channels, fc_channels),
            nn.ReLU(inplace=True),
            Linear(fc_channels, fc_channels),
            nn.ReLU(inplace=True),
        )
        self.fc_cls = Linear(fc_channels, num_classes)
        self.fc_reg = Linear(fc_channels, 5)
        self.bbox_coder = TASK_UTILS.build(bbox_coder)
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_bbox = MODELS.build(loss_bbox)

    def init_weights(self) -> None:
        """Class scores of 0.01 and deltas of zero: training starts from the boxes as they are."""
        super().init_weights()
        if is_checkpoint_init(self.init_cfg):
            return
        for layer in (self.query_fc, self.fcs[0], self.fcs[2]):
            xavier_init(layer, distribution='uniform')
        nn.init.normal_(self.fc_cls.weight, std=0.01)
        nn.init.constant_(self.fc_cls.bias, bias_init_with_prob(0.01))
        constant_init(self.fc_reg, 0)

    @staticmethod
    def prepare(proposals: Tensor) -> Tensor:
        """Boxes (..., 5) in pixels in le90, as objects are, with sides of at least a pixel."""
        boxes = torch.cat(
            [proposals[..., :2], proposals[..., 2:4].clamp(min=1), proposals[..., 4:]], -1
        )
        return regularize_boxes(boxes.detach())

    def forward(
        self, memory_maps: List[Tensor], states: Tensor, proposals: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """Look at each box once more.

        Args:
            memory_maps (list[Tensor]): Memory of the encoder, (B, C, h, w) for each level, zero where
                images are padded.
            states (Tensor): States of the queries after the last decoder layer, (B, Q, C).
            proposals (Tensor): Boxes in pixels from :meth:`prepare`, (B, Q, 5).

        Returns:
            tuple: Class logits (B, Q, classes) and deltas (B, Q, 5), in float32 at least.
        """
        batch, queries = proposals.shape[:2]
        image = torch.arange(batch, device=proposals.device, dtype=proposals.dtype)
        rois = torch.cat([image[:, None, None].expand(batch, queries, 1), proposals], -1)
        # The operator has no half precision everywhere, and coordinates need more than that.
        with torch.autocast(states.device.type, enabled=False):
            # It reads memory as it lies, whatever the strides say.
            maps = [m.to(proposals.dtype).contiguous() for m in memory_maps]
            pooled = self.extractor(maps, rois.flatten(0, 1))  # (B Q, C, 7, 7)
        features = torch.cat([pooled.view(batch, queries, -1), self.query_fc(states)], -1)
        features = self.fcs(features)
        logits, deltas = self.fc_cls(features), self.fc_reg(features)
        return logits.to(proposals.dtype), deltas.to(proposals.dtype)

    def loss(
        self,
        memory_maps: List[Tensor],
        states: Tensor,
        proposals: Tensor,
        matches: Matches,
        batch_gt_instances: InstanceList,
    ) -> Dict[str, Tensor]:
        """Losses of classes and deltas, divided by the number of objects.

        Args:
            memory_maps, states: See :meth:`forward`.
            proposals (Tensor): Boxes in pixels, (B, Q, 5).
            matches (list[tuple]): Queries and their objects, as matched with the proposals.
            batch_gt_instances (list[:obj:`InstanceData`]): ``bboxes`` (n, 5) in pixels, ``labels`` (n,).

        Returns:
            dict: ``loss_cls`` and ``loss_bbox``.
        """
        proposals = self.prepare(proposals)
        logits, deltas = self(memory_maps, states, proposals)
        labels, targets = gather_targets(matches, batch_gt_instances, logits)
        chosen = torch.cat([p[queries] for p, (queries, _) in zip(proposals, matches)])
        deltas = torch.cat([d[queries] for d, (queries, _) in zip(deltas, matches)])
        count = reduce_mean(logits.new_tensor([len(targets)])).clamp(min=1).item()
        return dict(
            loss_cls=self.loss_cls(logits.flatten(0, 1), labels.flatten(), avg_factor=count),
            loss_bbox=self.loss_bbox(
                deltas, self.bbox_coder.encode(chosen, targets), avg_factor=count
            ),
        )

    def predict(
        self,
        memory_maps: List[Tensor],
        states: Tensor,
        proposals: Tensor,
        batch_img_metas: List[dict],
        rescale: bool = False,
    ) -> InstanceList:
        """Refined detections, in the form of :meth:`O2DETRHead.predict_by_feat`.

        Args:
            memory_maps, states: See :meth:`forward`.
            proposals (Tensor): Boxes in pixels, (B, Q, 5).
            batch_img_metas (list[dict]): ``scale_factor`` is used for ``rescale``.
            rescale (bool): Whether to give boxes in pixels of the original images. Defaults to False.
        """
        proposals = self.prepare(proposals)
        logits, deltas = self(memory_maps, states, proposals)
        boxes = self.bbox_coder.decode(proposals, deltas)
        return [
            top_detections(*inputs, self.test_cfg.get('max_per_img'), rescale)
            for inputs in zip(logits, boxes, batch_img_metas)
        ]
