"""ViP-S/7 beside DeiT-S; its mixing layer beside a realisation that copies every branch back."""

import torch
from benchmark_case import Case
from mmpretrain.models import VisionTransformer
from torch import nn

from mmextra.backbones.vip import VisionPermutator, WeightedPermuteMLP


class Classifier(nn.Module):
    """Backbone, pooling and linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = VisionPermutator('s7', out_type='avg_featmap')
        self.fc = nn.Linear(self.backbone.embed_dims, 1000)

    def forward(self, x):
        return self.fc(self.backbone(x)[-1])


class CopyingPermuteMLP(WeightedPermuteMLP):
    """The same with the three branches added up for their mean, and for their weighted sum one by one."""

    def forward(self, x):
        batch, height, width, dim = x.shape
        segments = x.unflatten(3, (self.segment_dim, -1))
        h = self.mlp_h(segments.permute(0, 3, 2, 1, 4).flatten(3))
        h = h.unflatten(3, (height, -1)).permute(0, 3, 2, 1, 4).reshape(x.shape)
        w = self.mlp_w(segments.permute(0, 1, 3, 2, 4).flatten(3))
        w = w.unflatten(3, (width, -1)).permute(0, 1, 3, 2, 4).reshape(x.shape)
        c = self.mlp_c(x)
        weights = self.reweight((h + w + c).mean((1, 2))).view(batch, dim, 3)
        a = weights.permute(2, 0, 1).softmax(0)[:, :, None, None]
        return self.proj(h * a[0] + w * a[1] + c * a[2])


def cases(device):
    def images():
        return (torch.randn(4, 3, 224, 224, device=device),)

    def tokens():
        return (torch.randn(4, 32, 32, 192, device=device),)

    return [
        Case(
            'ViP-S/7, 224, batch 4',
            ours=lambda: (Classifier().to(device), images()),
            yardstick=lambda: (VisionTransformer('deit-small').to(device), images()),
            yardstick_name='mmpretrain DeiT-S',
        ),
        Case(
            'weighted Permute-MLP, 32x32x192, batch 4',
            ours=lambda: (WeightedPermuteMLP(192, 32).to(device), tokens()),
            yardstick=lambda: (CopyingPermuteMLP(192, 32).to(device), tokens()),
            yardstick_name='the same, every sum written out',
        ),
    ]
