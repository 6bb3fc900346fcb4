# GFL R34, 1x; 38.9 -> 41.0 box AP.
_base_ = 'ld_gfl-r18_r101-teacher_fpn_1x_coco.py'

model = dict(
    backbone=dict(depth=34, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet34'))
)
