# Faster R-CNN R101 from R152: no background nodes of their own; published 41.65 box AP.
_base_ = 'dsig_faster-rcnn-r18_r50-teacher_fpn_ms-180k_coco.py'

model = dict(
    backbone=dict(
        depth=101, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101')
    ),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)

custom_hooks = [
    dict(
        type='mmextra.InstanceGraphDistillHook',
        teacher=dict(
            config='mmextra::dsig/faster-rcnn_r152_fpn_ms-3x_coco.py',
            checkpoint='work_dirs/faster-rcnn_r152_fpn_ms-3x_coco/epoch_12.pth',
        ),
        feat=None,
        node_fg=0.5,
        node_bg=None,
        edge=1.0,
        mine_thr=0.6,
        roi_cls=None,
        roi_reg=None,
    )
]
