# RetinaNet MobileNetV2 from R50, without logits; published 32.16 box AP on COCO val.
_base_ = 'dsig_retinanet-r18_r50-teacher_fpn_ms-180k_coco.py'

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

custom_hooks = [
    dict(
        type='mmextra.InstanceGraphDistillHook',
        teacher=dict(
            config='mmdet::retinanet/retinanet_r50_fpn_ms-640-800-3x_coco.py',
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/'
            'retinanet_r50_fpn_mstrain_3x_coco/'
            'retinanet_r50_fpn_mstrain_3x_coco_20210718_220633-88476508.pth',
        ),
        feat=0.5,
        node_fg=0.5,
        edge=1.0,
        roi_cls=None,
        roi_reg=None,
    )
]
