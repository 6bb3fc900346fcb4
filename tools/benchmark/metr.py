"""METR: group matching within a training step with 80 categories, and beside the stock matching."""

import copy
from functools import partial

import torch
from benchmark_case import Case
from distill_step import detection_batch
from mmdet.registry import TASK_UTILS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import nn

COSTS = [
    dict(type='FocalLossCost', weight=2.0),
    dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
    dict(type='IoUCost', iou_mode='giou', weight=2.0),
]


class Matching(nn.Module):
    """One call of an assigner; the module has no weights."""

    def __init__(self, assigner: dict) -> None:
        super().__init__()
        register_all_modules()
        self.assigner = TASK_UTILS.build(assigner)

    def forward(self, queries: InstanceData, boxes: InstanceData) -> torch.Tensor:
        return self.assigner.assign(queries, boxes, dict(img_shape=(800, 1333))).gt_inds


def matching(assigner: dict, classes: int, device: str):
    """900 queries of 20 categories and 40 boxes of 10 of them."""
    generator = torch.Generator().manual_seed(0)

    def boxes(count):
        corner = torch.rand(count, 2, generator=generator) * 500
        return torch.cat([corner, corner + 300 * torch.rand(count, 2, generator=generator)], 1)

    queries = InstanceData(
        scores=torch.randn(900, classes, generator=generator),
        bboxes=boxes(900),
        groups=torch.arange(20).repeat_interleave(45),
    )
    gts = InstanceData(bboxes=boxes(40), labels=torch.randint(0, 10, (40,), generator=generator))
    return Matching(assigner), (queries.to(device), gts.to(device))


class Step(nn.Module):
    """The loss of a detector in train mode."""

    def __init__(self, model: dict, matched: bool = True) -> None:
        super().__init__()
        register_all_modules()
        torch.manual_seed(0)
        self.detector = MODELS.build(dict(copy.deepcopy(model), _scope_='mmdet')).train()
        if not matched:  # the same step without the work of the matching
            self.detector.bbox_head.assigner.assign = self._first

    def train(self, mode: bool = True):
        """A DINO has losses in train mode only."""
        return super().train(True)

    def _first(self, queries, gts, img_meta):
        """The first queries find the boxes, at no cost."""
        gt_inds = torch.zeros_like(queries.groups)
        gt_inds[: len(gts)] = torch.arange(1, len(gts) + 1, device=gt_inds.device)
        return InstanceData(gt_inds=gt_inds)

    def forward(self, inputs, data_samples) -> torch.Tensor:
        losses = self.detector(inputs, copy.deepcopy(data_samples), mode='loss')
        values = [v for k, v in losses.items() if 'loss' in k]
        return sum(v.sum() for v in values)


def step(model: dict, matched: bool, device: str):
    """DINO R50, 4 scales, and two images of 256x256 with 6 boxes each."""
    return Step(model, matched).to(device), detection_batch(2, 256, device)


def cases(device: str = 'cpu'):
    dino = get_config('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py').model
    dino.backbone.init_cfg = None
    metr = Config(copy.deepcopy(dict(model=dino))).model
    metr.update(type='mmextra.METR', label_spaces=dict(coco='mmdet.CocoDataset'), num_categories=20)
    metr.bbox_head.type = 'mmextra.METRHead'
    metr.train_cfg.assigner.type = 'mmextra.GroupHungarianAssigner'
    group = dict(type='mmextra.GroupHungarianAssigner', match_costs=COSTS)
    stock = dict(type='HungarianAssigner', match_costs=COSTS)
    return [
        Case(
            'METR step, R50, 80 categories, 256, batch 2',
            ours=partial(step, metr, True, device),
            yardstick=partial(step, metr, False, device),
            yardstick_name='the same step without matching',
            reference=partial(step, dino, True, device),
            reference_name='DINO step (mmdet)',
        ),
        Case(
            'METR matching, 900 queries, 40 boxes',
            ours=partial(matching, group, 1, device),
            yardstick=partial(matching, stock, 80, device),
            yardstick_name='HungarianAssigner (mmdet)',
            backward=False,
        ),
    ]
