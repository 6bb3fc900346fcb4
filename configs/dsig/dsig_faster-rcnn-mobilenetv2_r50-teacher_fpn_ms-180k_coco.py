# Faster R-CNN MobileNetV2 from R50, weights as for R18; published 34.44 box AP on COCO val.
_base_ = 'dsig_faster-rcnn-r18_r50-teacher_fpn_ms-180k_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='MobileNetV2',
        out_indices=(1, 2, 4, 6),
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://mmdet/mobilenet_v2'),
    ),
    neck=dict(in_channels=[24, 32, 96, 320]),
)
