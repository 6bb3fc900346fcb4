"""Backbones of about DeiT-S's size beside timm's DeiT-S at batch 2, as the reference code was measured.

The third row is the same network written down plainly, operation by operation: how fast such code is beside DeiT-S on
the machine at hand.
"""

import deepvit
import refiner
import timm
import token_labeling
import torch
import torch.nn.functional as F
import vip
import volo
from benchmark_case import Case
from torch import nn

from mmextra.backbones import plain_vit
from mmextra.backbones.deepvit import DeepViT, ReAttention
from mmextra.backbones.refiner import DistributedLocalAttention, RefinerViT
from mmextra.backbones.token_labeling.lvvit import ConvStem, LVViTAttention
from mmextra.backbones.vip import WeightedPermuteMLP
from mmextra.backbones.volo import VOLO, OutlookAttention


class PlainStem(ConvStem):
    """Convolution, norm and ReLU one after the other."""

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.proj(F.relu(self.bn3(self.conv3(x))))


class PlainPaddedStem(plain_vit.ConvStem):
    """The same for the stem of DeepViT and Refiner."""

    def forward(self, x):
        for layer in self.stem:
            x = layer(x)
        return super(plain_vit.ConvStem, self).forward(x)


class PlainReAttention(deepvit.TwoKernels):
    """Products, softmax, convolution, norm and sum one after the other."""

    def forward(self, x, need_map=True):
        return super().forward(x, need_map=True)


class PlainAttention(LVViTAttention):
    """Products, softmax and sum one after the other."""

    def forward(self, x):
        q, k, v = (
            self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        )
        attn = ((q @ k.mT) * self.scale).softmax(-1)
        return self.proj((attn @ v).transpose(1, 2).flatten(2))


PLAIN = {
    ConvStem: PlainStem,
    plain_vit.ConvStem: PlainPaddedStem,
    LVViTAttention: PlainAttention,
    OutlookAttention: volo.UnfoldFold,
    WeightedPermuteMLP: vip.CopyingPermuteMLP,
    ReAttention: PlainReAttention,
    DistributedLocalAttention: refiner.OneByOne,
}


def plain(model: nn.Module) -> nn.Module:
    """The model with the plain form of each module that has one."""
    for module in model.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return model


def cases(device):
    def build(make):
        return lambda: (make().to(device), (torch.randn(2, 3, 224, 224, device=device),))

    models = {
        'VOLO-D1': lambda: volo.Classifier(VOLO('d1', out_type='dense')),
        'ViP-S/7': vip.Classifier,
        'Refiner-S': lambda: RefinerViT('s'),
        'LV-ViT-S': token_labeling.Classifier,
        'DeepViT-S': lambda: DeepViT('s'),
    }
    return [
        Case(
            f'{name}, 224, batch 2',
            ours=build(make),
            yardstick=build(lambda: timm.create_model('deit_small_patch16_224')),
            yardstick_name='timm DeiT-S',
            reference=build(lambda make=make: plain(make())),
            reference_name='the same, written down plainly',
        )
        for name, make in models.items()
    ]
