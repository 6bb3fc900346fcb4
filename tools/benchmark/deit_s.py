"""Backbones of about DeiT-S's size beside timm's DeiT-S at batch 2, as the reference code was measured."""

import timm
import token_labeling
import torch
import vip
import volo
from benchmark_case import Case

from mmextra.backbones.deepvit import DeepViT
from mmextra.backbones.refiner import RefinerViT
from mmextra.backbones.volo import VOLO


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
        )
        for name, make in models.items()
    ]
