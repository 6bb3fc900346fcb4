# O2DETR R50 on DOTA-v1.0, patches of 1024 pixels at one scale; published: 72.15 mAP50 (test).
# The encoder without attention and the oriented head on stock Deformable DETR. Numbers without a
# comment of their own are those of Deformable DETR, which the paper builds on.
_base_ = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'

model = dict(
    type='mmextra.O2DETR',
    num_queries=500,  # aerial images hold more objects than those of COCO
    encoder=dict(
        num_layers=6,
        layer_cfg=dict(_delete_=True, embed_dims=256, feedforward_channels=1024, dropout=0.1),
    ),
    bbox_head=dict(
        type='mmextra.O2DETRHead',
        num_classes=15,
        loss_iou=dict(_delete_=True, type='mmextra.OrientedIoULoss', loss_weight=2.0),
    ),
    train_cfg=dict(
        assigner=dict(
            match_costs=[
                dict(type='FocalLossCost', weight=2.0),
                dict(type='mmextra.OrientedL1Cost', weight=5.0),
                dict(type='mmextra.OrientedIoUCost', weight=2.0),
            ]
        )
    ),
    test_cfg=dict(max_per_img=500),
)

dataset_type = 'mmextra.OrientedDOTADataset'
# Made by `tools/prepare_data.py dota-split`: windows of 1024 pixels, 200 of them shared (single scale).
data_root = '{{$MMEXTRA_DATA:data}}/split_ss_dota/'
backend_args = None

train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='LoadAnnotations', with_bbox=True, box_type='obox'),
    dict(type='Resize', scale=(1024, 1024), keep_ratio=True),
    dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    # Storage tanks and roundabouts have no direction: where one of them is, quarter turns only.
    dict(type='mmextra.OrientedRandomRotate', prob=0.5, angle_range=180, rect_classes=[9, 11]),
    dict(type='PackDetInputs'),
]
# Annotations are loaded after resizing: the metric compares in pixels of the patch.
val_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='Resize', scale=(1024, 1024), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, box_type='obox'),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
test_pipeline = [step for step in val_pipeline if step['type'] != 'LoadAnnotations']

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root=data_root,
        ann_file='trainval/annfiles/',
        data_prefix=dict(img_path='trainval/images/'),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    )
)
# Labels of the test images are kept by the benchmark's server: figures during training are on what is
# trained on, and a submission is written by tools/test.py.
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root=data_root,
        ann_file='trainval/annfiles/',
        data_prefix=dict(img_path='trainval/images/'),
        test_mode=True,
        pipeline=val_pipeline,
    )
)
test_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='test/images/'),
        test_mode=True,
        pipeline=test_pipeline,
    )
)
val_evaluator = dict(_delete_=True, type='mmextra.OrientedDOTAMetric')
test_evaluator = dict(
    _delete_=True,
    type='mmextra.OrientedDOTAMetric',
    format_only=True,
    merge_patches=True,
    outfile_prefix='work_dirs/o2detr_r50_16xb2-50e_dota-ss/Task1',
)
train_cfg = dict(val_interval=10)
visualizer = dict(type='mmextra.OrientedLocalVisualizer')
# `tools/test.py --tta`
tta_model = dict(
    type='mmextra.OrientedTTAModel',
    tta_cfg=dict(nms=dict(type='nms_rotated', iou_threshold=0.1), max_per_img=500),
)
