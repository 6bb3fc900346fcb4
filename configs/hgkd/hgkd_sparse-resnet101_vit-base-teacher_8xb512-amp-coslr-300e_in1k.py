# ResNet-101 from a ViT-B/16.
_base_ = 'hgkd_sparse-resnet50_vit-base-teacher_8xb512-amp-coslr-300e_in1k.py'

model = dict(backbone=dict(depth=101))
