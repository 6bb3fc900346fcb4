# Faster R-CNN R50 from R101: 37.93 -> 40.36 box AP. The levels are those of the FPN, P2 to P6.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_180k.py',
]

custom_hooks = [
    dict(
        type='mmextra.ReviewKDHook',
        teacher=dict(
            config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_ms-3x_coco.py',
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/'
            'faster_rcnn_r101_fpn_mstrain_3x_coco/'
            'faster_rcnn_r101_fpn_mstrain_3x_coco_20210524_110822-4d4d2ca8.pth',
        ),
        student_layers='neck',
        student_channels=[256] * 5,
        teacher_channels=[256] * 5,
        mid_channels=256,
        loss_weight=1.0,
    )
]

train_pipeline = [
    dict(type='LoadImageFromFile', backend_args={{_base_.backend_args}}),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='RandomChoiceResize',
        scales=[(1333, 640), (1333, 672), (1333, 704), (1333, 736), (1333, 768), (1333, 800)],
        keep_ratio=True,
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
# Published with 8 images an iteration: here 8 devices with one each.
train_dataloader = dict(
    batch_size=1,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(pipeline=train_pipeline),
)
