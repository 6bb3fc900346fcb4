# DOTA-v1.0 in patches of 1024 pixels, 200 of them shared (single scale):
#   python tools/prepare_data.py dota-split --source DOTA/train DOTA/val --out data/split_ss_dota/trainval
#   python tools/prepare_data.py dota-split --source DOTA/test --out data/split_ss_dota/test
# Configs that are measured on the validation images: DOTA/train to data/split_ss_dota/train, DOTA/val to .../val.
# Several scales: --rates 0.5 1.0 1.5 --gap 500. For v1.5 and v2.0 use mmextra.OrientedDOTADatasetV15, ...V2.
dataset_type = 'mmextra.OrientedDOTADataset'
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
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='trainval/annfiles/',
        data_prefix=dict(img_path='trainval/images/'),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='trainval/annfiles/',
        data_prefix=dict(img_path='trainval/images/'),
        test_mode=True,
        pipeline=val_pipeline,
    ),
)
# The labels of the test images are the benchmark's own: testing writes a submission.
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='test/images/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type='mmextra.OrientedDOTAMetric')
test_evaluator = dict(
    type='mmextra.OrientedDOTAMetric',
    format_only=True,
    merge_patches=True,
    outfile_prefix='work_dirs/dota/Task1',
)
