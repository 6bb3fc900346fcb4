# METR on both sets as they are: each image is asked about the two categories of its own set.
_base_ = 'dino-r18-merged_shapes-ab_demo.py'

model = dict(
    type='mmextra.METR',
    label_spaces=dict(a=('square', 'circle'), b=('circle', 'triangle')),
    test_label_space=('square', 'circle', 'triangle'),
    embeddings=dict(source='hash'),
    num_categories=20,
    cem=dict(num_layers=2, feedforward_channels=256, loss_weight=1.0),
    bbox_head=dict(type='mmextra.METRHead'),
    train_cfg=dict(assigner=dict(type='mmextra.GroupHungarianAssigner')),
)


meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'label_space')
load = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
]
pack = dict(type='PackDetInputs', meta_keys=meta_keys)
train_dataloader = dict(
    sampler=dict(_delete_=True, type='mmextra.SizePowerSampler'),
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        ignore_keys=['classes', 'palette'],
        datasets=[
            dict(
                type='CocoDataset',
                data_root=_base_.data_root,
                ann_file='a.json',
                data_prefix=dict(img=''),
                metainfo=dict(classes=('square', 'circle')),
                pipeline=[*load, dict(type='mmextra.AttachLabelSpace', name='a'), pack],
            ),
            dict(
                type='CocoDataset',
                data_root=_base_.data_root,
                ann_file='b.json',
                data_prefix=dict(img=''),
                metainfo=dict(classes=('circle', 'triangle')),
                pipeline=[*load, dict(type='mmextra.AttachLabelSpace', name='b'), pack],
            ),
        ],
    ),
)
val_evaluator = [*_base_.val_evaluator, dict(type='mmextra.CategoryExtractionMetric')]
test_evaluator = val_evaluator
custom_hooks = [dict(type='mmextra.LabelSpaceCheckHook')]
