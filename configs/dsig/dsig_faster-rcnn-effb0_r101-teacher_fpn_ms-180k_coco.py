# Faster R-CNN EfficientNet-B0 from R101, weights as for R18; published 37.74 box AP on COCO val.
_base_ = 'dsig_faster-rcnn-r18_r50-teacher_fpn_ms-180k_coco.py'

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
            config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_ms-3x_coco.py',
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/'
            'faster_rcnn_r101_fpn_mstrain_3x_coco/'
            'faster_rcnn_r101_fpn_mstrain_3x_coco_20210524_110822-4d4d2ca8.pth',
        ),
        feat=0.5,
        node_fg=0.5,
        node_bg=dict(weight=0.5, alpha=7.5),
        edge=2.0,
        mine_thr=0.6,
        roi_cls=dict(weight=3.0, T=1.0),
        roi_reg=1.0,
    )
]
