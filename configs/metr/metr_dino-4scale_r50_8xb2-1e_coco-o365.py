# Pre-training on COCO and Objects365 with one pass of the size of Objects365; both are validated in one
# loop, each by its own metric.
_base_ = 'metr_dino-4scale_r50_8xb2-12e_coco.py'

model = dict(label_spaces=dict(coco='mmdet.CocoDataset', o365='mmdet.Objects365V1Dataset'))

meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'label_space')
pack = dict(type='PackDetInputs', meta_keys=meta_keys)
coco = dict(type='mmextra.AttachLabelSpace', name='coco')
o365 = dict(type='mmextra.AttachLabelSpace', name='o365')
# DINO's multi-scale augmentation, 480 to 800 by at most 1333.
train_steps = _base_.train_pipeline[:-1]
test_steps = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
]
o365_root = 'data/Objects365/Obj365_v1/'

train_dataloader = dict(
    # COCO's 118,000 images are drawn from about 0.4 times as often as Objects365's 609,000.
    sampler=dict(_delete_=True, type='mmextra.SizePowerSampler', power=0.5),
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        ignore_keys=['classes', 'palette'],
        datasets=[
            dict(
                type='CocoDataset',
                data_root='data/coco/',
                ann_file='annotations/instances_train2017.json',
                data_prefix=dict(img='train2017/'),
                filter_cfg=dict(filter_empty_gt=False),
                pipeline=[*train_steps, coco, pack],
            ),
            dict(
                type='Objects365V1Dataset',
                data_root=o365_root,
                ann_file='annotations/objects365_train.json',
                data_prefix=dict(img='train/'),
                filter_cfg=dict(filter_empty_gt=False),
                pipeline=[*train_steps, o365, pack],
            ),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(
                type='CocoDataset',
                data_root='data/coco/',
                ann_file='annotations/instances_val2017.json',
                data_prefix=dict(img='val2017/'),
                test_mode=True,
                pipeline=[*test_steps, coco, pack],
            ),
            dict(
                type='Objects365V1Dataset',
                data_root=o365_root,
                ann_file='annotations/objects365_val.json',
                data_prefix=dict(img='val/'),
                test_mode=True,
                pipeline=[*test_steps, o365, pack],
            ),
        ],
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(
    _delete_=True,
    type='mmextra.LabelSpaceEvaluator',
    label_spaces=['coco', 'o365'],
    metrics=[
        [
            dict(
                type='CocoMetric',
                ann_file='data/coco/annotations/instances_val2017.json',
                metric='bbox',
            ),
            dict(type='mmextra.CategoryExtractionMetric'),
        ],
        [
            dict(
                type='CocoMetric',
                ann_file=o365_root + 'annotations/objects365_val.json',
                metric='bbox',
                sort_categories=True,
            ),
            dict(type='mmextra.CategoryExtractionMetric'),
        ],
    ],
)
test_evaluator = val_evaluator

# One epoch is as many draws as both sets have images, 727,000 or 45,500 iterations of batch 16; the rate
# drops for the last sixth.
max_epochs = 1
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(
        type='MultiStepLR',
        begin=0,
        end=45500,
        by_epoch=False,
        milestones=[38000],
        gamma=0.1,
    )
]
