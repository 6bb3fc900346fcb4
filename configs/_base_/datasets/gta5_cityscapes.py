# GTA5 with labels, Cityscapes without. Labels of both in Cityscapes' training ids, `*_labelTrainIds.png`
# (GTA5: tools/train_ids.py gta5).
data_root = '{{$MMEXTRA_DATA:data}}'
crop = dict(
    type='mmextra.TrackedRandomSizedCrop',
    width=2200,  # times U(0.5, 1.5)
    ratio_range=(0.5, 1.5),
    crop_size=(512, 896),
    flip_prob=0.5,
)
source = dict(
    type='CityscapesDataset',
    data_root=f'{data_root}/gta5',
    data_prefix=dict(img_path='images', seg_map_path='labels'),
    img_suffix='.png',
    seg_map_suffix='_labelTrainIds.png',
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='Resize', scale=(1914, 1052), keep_ratio=False),
        crop,
        dict(type='PackSegInputs'),
    ],
)
target = dict(
    type='CityscapesDataset',
    data_root=f'{data_root}/cityscapes',
    data_prefix=dict(img_path='leftImg8bit/train'),
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(2048, 1024), keep_ratio=False),
        crop,
        dict(type='PackSegInputs'),
    ],
)
train_dataloader = dict(
    batch_size=2,  # 8 pairs on 4 GPUs
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='mmextra.DomainPairSampler'),
    dataset=dict(
        type='mmextra.DomainPairDataset',
        source=source,
        target=target,
        class_balanced=True,
        class_counts=f'{data_root}/gta5/class_counts.npy',
    ),
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 1024), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CityscapesDataset',
        data_root=f'{data_root}/cityscapes',
        data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='mmextra.ClassIoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
