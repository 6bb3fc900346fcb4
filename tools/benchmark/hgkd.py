"""H-GKD (configs/hgkd): a pre-training step of ResNet-50 from a ViT-B/16 beside one of stock SparK."""

from functools import partial

import torch
from benchmark_case import Case
from mmengine.registry import MODELS
from torch import Tensor, nn

SIZE, BATCH = 224, 2
PIXELS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
ENCODER = dict(
    type='SparseResNet',
    depth=50,
    out_indices=(0, 1, 2, 3),
    norm_cfg=dict(type='SparseBatchNorm2d'),
    init_cfg=None,
)
TEACHER = dict(
    type='VisionTransformer', arch='base', img_size=SIZE, patch_size=16, out_type='featmap'
)
HGKD = dict(
    type='mmextra.HGKD',
    teacher=TEACHER,
    decoder=dict(
        width=512, sparse_norm_cfg=dict(type='SparseBatchNorm2d'), norm_cfg=dict(type='BN')
    ),
)
SPARK = dict(
    type='SparK',
    input_size=SIZE,
    mask_ratio=0.6,
    enc_dec_norm_cfg=dict(type='SparseBatchNorm2d'),
    enc_dec_norm_dim=2048,
    neck=dict(
        type='SparKLightDecoder', feature_dim=512, upsample_ratio=32, norm_cfg=dict(type='BN')
    ),
    head=dict(type='SparKPretrainHead', loss=dict(type='PixelReconstructionLoss', criterion='L2')),
)


class Losses(nn.Module):
    """The loss of a self-supervised model; with a teacher, its forward pass beside it, unused."""

    def __init__(self, model: dict, teacher: bool) -> None:
        super().__init__()
        model = dict(model, backbone=ENCODER, data_preprocessor=PIXELS, _scope_='mmpretrain')
        self.model = MODELS.build(model)
        # In a list, not counted: H-GKD keeps its own out of its parameters, too.
        self.beside = [MODELS.build(dict(TEACHER, _scope_='mmpretrain'))] if teacher else []

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            for teacher in self.beside:
                teacher(images)
        return sum(self.model.loss(images, None).values())


def build(model: dict, device: str, teacher: bool = False) -> tuple:
    """A model that returns its loss, and random images."""
    module = Losses(model, teacher).to(device)
    for beside in module.beside:
        beside.to(device).eval()
    return module, (torch.randn(BATCH, 3, SIZE, SIZE, device=device),)


def cases(device: str = 'cpu'):
    return [
        Case(
            f'H-GKD step, ResNet-50 <- ViT-B/16, {SIZE}, batch {BATCH}',
            ours=partial(build, HGKD, device),
            yardstick=partial(build, SPARK, device),
            yardstick_name='SparK step (mmpretrain)',
            reference=partial(build, SPARK, device, teacher=True),
            reference_name='SparK step + teacher forward',
        )
    ]
