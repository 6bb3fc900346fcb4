# Faster R-CNN R18 from R101: 33.26 -> 36.75 box AP.
_base_ = 'reviewkd_faster-rcnn-r50_r101-teacher_fpn_ms-180k_coco.py'

model = dict(
    backbone=dict(depth=18, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
custom_hooks = _base_.custom_hooks
custom_hooks[0].loss_weight = 1.2
