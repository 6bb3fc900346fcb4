# Everyday objects (the first 128 images of COCO's splits) and blood cells, each with its own label
# space, mixed in training and validated in one loop: `python tools/prepare_data.py coco128 --source ...`,
# `... bccd --source ...`.
data_root = '{{$MMEXTRA_DATA:data}}/'
cells = dict(classes=('RBC', 'WBC', 'Platelets'))
scale = (256, 192)

meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'label_space')
pack = dict(type='PackDetInputs', meta_keys=meta_keys)
train_steps = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
]
test_steps = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
]
coco = dict(type='mmextra.AttachLabelSpace', name='coco')
bccd = dict(type='mmextra.AttachLabelSpace', name='bccd')

train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=False,
    sampler=dict(type='mmextra.SizePowerSampler', power=0.5),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type='ConcatDataset',
        ignore_keys=['classes', 'palette'],
        datasets=[
            dict(
                type='CocoDataset',
                data_root=data_root + 'coco128/',
                ann_file='annotations/instances_train2017.json',
                data_prefix=dict(img='train2017/'),
                filter_cfg=dict(filter_empty_gt=False),
                pipeline=[*train_steps, coco, pack],
            ),
            dict(
                type='CocoDataset',
                data_root=data_root + 'bccd/',
                ann_file='annotations/instances_trainval.json',
                data_prefix=dict(img='VOC2007/JPEGImages/'),
                metainfo=cells,
                filter_cfg=dict(filter_empty_gt=False),
                pipeline=[*train_steps, bccd, pack],
            ),
        ],
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ConcatDataset',
        datasets=[
            dict(
                type='CocoDataset',
                data_root=data_root + 'coco128/',
                ann_file='annotations/instances_val2017.json',
                data_prefix=dict(img='val2017/'),
                test_mode=True,
                pipeline=[*test_steps, coco, pack],
            ),
            dict(
                type='CocoDataset',
                data_root=data_root + 'bccd/',
                ann_file='annotations/instances_test.json',
                data_prefix=dict(img='VOC2007/JPEGImages/'),
                metainfo=cells,
                test_mode=True,
                pipeline=[*test_steps, bccd, pack],
            ),
        ],
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type='mmextra.LabelSpaceEvaluator',
    label_spaces=['coco', 'bccd'],
    metrics=[
        [
            dict(
                type='CocoMetric',
                ann_file=data_root + 'coco128/annotations/instances_val2017.json',
                metric='bbox',
            ),
            dict(type='mmextra.CategoryExtractionMetric'),
        ],
        [
            dict(
                type='CocoMetric',
                ann_file=data_root + 'bccd/annotations/instances_test.json',
                metric='bbox',
            ),
            dict(type='mmextra.CategoryExtractionMetric'),
        ],
    ],
)
test_evaluator = val_evaluator
