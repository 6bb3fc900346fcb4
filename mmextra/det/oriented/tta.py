"""Test-time augmentation of oriented detectors."""

from typing import List

import torch
from mmdet.models import DetTTAModel
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData

from mmextra.det.oriented.metric import suppress
from mmextra.registry import MODELS
from mmextra.structures.oriented_boxes import OrientedBoxes


@MODELS.register_module()
class OrientedTTAModel(DetTTAModel):
    """mmdet's test-time augmentation for boxes (cx, cy, w, h, angle): flipped and resized views.

    Detections of all views are turned back and put together by NMS within each class. Objects, where
    the pipeline loads some, are those of a view that is not flipped, so there should be one.

    Args:
        tta_cfg (dict): ``nms``, of which ``iou_threshold`` is used, and ``max_per_img``.
        **kwargs: Those of :class:`mmdet.models.DetTTAModel`.

    Raises:
        ValueError: If ``tta_cfg`` lacks one of these.
    """

    def __init__(self, tta_cfg: dict, **kwargs) -> None:
        super().__init__(tta_cfg=tta_cfg, **kwargs)
        if 'iou_threshold' not in tta_cfg.get('nms', {}) or 'max_per_img' not in tta_cfg:
            raise ValueError(
                'tta_cfg must be like dict(nms=dict(iou_threshold=0.1), max_per_img=2000), got '
                f'{tta_cfg}'
            )

    def _merge_single_sample(self, data_samples: List[DetDataSample]) -> DetDataSample:
        """The views of one image as one sample."""
        found = []
        for sample in data_samples:
            pred = sample.pred_instances
            boxes = OrientedBoxes(get_box_tensor(pred.bboxes))
            if sample.flip:
                boxes.flip_(sample.ori_shape[:2], sample.flip_direction)
            found.append(
                dict(bboxes=boxes.regularize().tensor, scores=pred.scores, labels=pred.labels)
            )
        every = {k: torch.cat([f[k] for f in found]) for k in found[0]}
        kept = InstanceData(
            **suppress(every, every['scores'], self.tta_cfg['nms']['iou_threshold'])
        )
        order = kept.scores.argsort(descending=True)[: self.tta_cfg['max_per_img']]
        merged = next((s for s in data_samples if not s.flip), data_samples[0])
        merged.pred_instances = kept[order]
        return merged
