# Faster R-CNN R50 from R101: the graph alone, edges at half the weight; published 40.57 box AP.
_base_ = 'dsig_faster-rcnn-r18_r50-teacher_fpn_ms-180k_coco.py'

model = dict(
    backbone=dict(depth=50, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
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
        feat=None,
        node_fg=0.5,
        node_bg=dict(weight=0.5, alpha=7.5),
        edge=1.0,
        mine_thr=0.6,
        roi_cls=None,
        roi_reg=None,
    )
]
