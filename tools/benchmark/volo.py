"""VOLO-D1 beside DeiT-S and timm's VOLO-D1; outlook attention beside unfold and fold."""

import timm
import torch
import torch.nn.functional as F
from benchmark_case import Case
from mmpretrain.models import VisionTransformer
from torch import nn

from mmextra.backbones.token_labeling import TokenLabelClsHead
from mmextra.backbones.volo import VOLO, OutlookAttention


class Classifier(nn.Module):
    """Backbone and head; in training the logits of the class token and of all patch tokens."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = TokenLabelClsHead(1000, backbone.embed_dims)

    def forward(self, x):
        feats = self.backbone(x)
        return self.head.scores(feats)[:2] if self.training else self.head(feats)


class UnfoldFold(OutlookAttention):
    """The same with unfold, fold and a softmax over contiguous entries."""

    def forward(self, x):
        batch, height, width, dim = x.shape
        heads, size = self.num_heads, dim // self.num_heads
        window = dict(kernel_size=3, padding=1, stride=self.stride)
        values = F.unfold(self.v(x).permute(0, 3, 1, 2), **window)
        values = values.view(batch, heads, size, 9, -1).permute(0, 1, 4, 3, 2)
        pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), self.stride, self.stride, ceil_mode=True)
        attn = self.attn(pooled.permute(0, 2, 3, 1)).view(batch, -1, heads, 9, 9)
        attn = (attn.permute(0, 2, 1, 3, 4) * self.scale).softmax(-1)
        out = (attn @ values).permute(0, 1, 4, 3, 2).reshape(batch, dim * 9, -1)
        out = F.fold(out, (height, width), **window)
        return self.proj(out.permute(0, 2, 3, 1))


def cases(device):
    def images():
        return (torch.randn(4, 3, 224, 224, device=device),)

    def tokens():
        return (torch.randn(4, 28, 28, 192, device=device),)

    return [
        Case(
            'VOLO-D1, 224, batch 4',
            ours=lambda: (Classifier(VOLO('d1', out_type='dense')).to(device), images()),
            yardstick=lambda: (VisionTransformer('deit-small').to(device), images()),
            yardstick_name='mmpretrain DeiT-S',
            reference=lambda: (timm.create_model('volo_d1_224').to(device), images()),
        ),
        Case(
            'outlook attention, 28x28x192, stride 2, batch 4',
            ours=lambda: (OutlookAttention(192, 6, stride=2).to(device), tokens()),
            yardstick=lambda: (UnfoldFold(192, 6, stride=2).to(device), tokens()),
            yardstick_name='the same with unfold and fold',
        ),
    ]
