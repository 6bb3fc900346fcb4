# RetinaNet R50 from R101: about 36.2 -> 38.48 box AP. The levels are those of the FPN, P3 to P7.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_180k.py',
]

custom_hooks = [
    dict(
        type='mmextra.ReviewKDHook',
        teacher=dict(
            config='mmdet::retinanet/retinanet_r101_fpn_ms-640-800-3x_coco.py',
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/'
            'retinanet_r101_fpn_mstrain_3x_coco/'
            'retinanet_r101_fpn_mstrain_3x_coco_20210720_214650-7ee888e0.pth',
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
optim_wrapper = dict(optimizer=dict(lr=0.005))
