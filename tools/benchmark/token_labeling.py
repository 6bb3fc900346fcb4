"""LV-ViT-S beside DeiT-S; building targets from label maps beside the dense way."""

import torch
from benchmark_case import Case
from mmcv.ops import roi_align
from mmpretrain.models import VisionTransformer
from torch import nn

from mmextra.backbones.token_labeling import (
    LVViT,
    TokenLabelClsHead,
    one_hot_target,
    token_label_target,
)
from mmextra.backbones.token_labeling.targets import crop_boxes

CLASSES = 1000


class Classifier(nn.Module):
    """Backbone and head; in training the logits of the class token and of all patch tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = LVViT('s', out_type='dense')
        self.head = TokenLabelClsHead(CLASSES, self.backbone.embed_dims)

    def forward(self, x):
        feats = self.backbone(x)
        return self.head.scores(feats)[:2] if self.training else self.head(feats)


class Targets(nn.Module):
    """Targets of a batch from its label maps."""

    def forward(self, label, crop, gt_label):
        return token_label_target(label, crop, gt_label, CLASSES)


class DenseTargets(nn.Module):
    """The same with a dense map of all classes, as the published code does."""

    def forward(self, label, crop, gt_label):
        maps = label.new_zeros(len(label), CLASSES, *label.shape[3:])
        maps.scatter_(1, label[:, 1].long(), label[:, 0])
        rois = crop_boxes(crop, *label.shape[3:], 'xy')
        pooled = [roi_align(maps, rois, n, 1.0, 0, 'avg', False).flatten(2) for n in (1, 14)]
        off = 0.1 / CLASSES
        soft = torch.cat(pooled, 2).softmax(1) * (0.9 + off) + off
        return torch.cat((one_hot_target(gt_label, CLASSES)[:, :, None], soft), 2)


def cases(device):
    def images():
        return (torch.randn(4, 3, 224, 224, device=device),)

    def label_maps(batch=32):
        ids = torch.rand(batch, 5, 18, 18, device=device).mul(60).floor()
        label = torch.stack((torch.rand_like(ids) * 10, ids), 1)
        crop = torch.rand(batch, 4, device=device) / 2
        return label, crop, torch.randint(CLASSES, (batch,), device=device)

    return [
        Case(
            'LV-ViT-S, 224, batch 4',
            ours=lambda: (Classifier().to(device), images()),
            yardstick=lambda: (VisionTransformer('deit-small').to(device), images()),
            yardstick_name='mmpretrain DeiT-S',
        ),
        Case(
            'targets of 14x14 tokens, 1000 classes, batch 32',
            ours=lambda: (Targets(), label_maps()),
            yardstick=lambda: (DenseTargets(), label_maps()),
            yardstick_name='dense maps of all classes',
            backward=False,
        ),
    ]
