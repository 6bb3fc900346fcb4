# Mask R-CNN MobileNetV2 from R50: 28.37 -> 31.56 mask AP.
_base_ = 'reviewkd_mask-rcnn-r50_r101-teacher_fpn_ms-180k_coco.py'

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
custom_hooks = _base_.custom_hooks
custom_hooks[0].loss_weight = 1.0
custom_hooks[0].teacher = dict(
    config='mmdet::mask_rcnn/mask-rcnn_r50_fpn_ms-poly-3x_coco.py',
    checkpoint='https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn/'
    'mask_rcnn_r50_fpn_mstrain-poly_3x_coco/'
    'mask_rcnn_r50_fpn_mstrain-poly_3x_coco_20210524_201154-21b550bb.pth',
)
