# Mask R-CNN R50 from R101: 35.24 -> 36.98 mask AP.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_180k.py',
]

custom_hooks = [
    dict(
        type='mmextra.ReviewKDHook',
        teacher=dict(
            config='mmdet::mask_rcnn/mask-rcnn_r101_fpn_ms-poly-3x_coco.py',
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn/'
            'mask_rcnn_r101_fpn_mstrain-poly_3x_coco/'
            'mask_rcnn_r101_fpn_mstrain-poly_3x_coco_20210524_200244-5675c317.pth',
        ),
        student_layers='neck',
        student_channels=[256] * 5,
        teacher_channels=[256] * 5,
        mid_channels=256,
        loss_weight=0.8,
    )
]

train_pipeline = [
    dict(type='LoadImageFromFile', backend_args={{_base_.backend_args}}),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
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
