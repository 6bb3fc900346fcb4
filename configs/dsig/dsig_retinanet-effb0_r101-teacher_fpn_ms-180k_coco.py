# RetinaNet EfficientNet-B0 from R101, without logits; published 34.44 box AP on COCO val.
_base_ = 'dsig_retinanet-r18_r50-teacher_fpn_ms-180k_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='EfficientNet',
        arch='b0',
        out_indices=(2, 3, 4, 5),
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(
            type='Pretrained',
            prefix='backbone',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/efficientnet/'
            'efficientnet-b0_3rdparty_8xb32-aa_in1k_20220119-8d939117.pth',
        ),
    ),
    neck=dict(in_channels=[24, 40, 112, 320]),
)

custom_hooks = [
    dict(
        type='mmextra.InstanceGraphDistillHook',
        teacher=dict(
            config='mmdet::retinanet/retinanet_r101_fpn_ms-640-800-3x_coco.py',
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/'
            'retinanet_r101_fpn_mstrain_3x_coco/'
            'retinanet_r101_fpn_mstrain_3x_coco_20210720_214650-7ee888e0.pth',
        ),
        feat=0.5,
        node_fg=0.5,
        edge=1.0,
        roi_cls=None,
        roi_reg=None,
    )
]
