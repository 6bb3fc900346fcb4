# CamVid at half size: two drives by day with labels, one at dusk without; tested on other parts of the latter.
_base_ = './camvid.py'

data_root = '{{$MMEXTRA_DATA:data}}/camvid'
crop = dict(
    type='mmextra.TrackedRandomSizedCrop', width=240, ratio_range=(0.75, 1.5), crop_size=(128, 160)
)
half = dict(type='Resize', scale=(240, 180), keep_ratio=False)
# Where one image is tested, or several views of it: at half size, too.
test_pipeline = _base_.test_pipeline
test_pipeline[1] = half
tta_pipeline = _base_.tta_pipeline
tta_pipeline.insert(1, half)
source = dict(
    type='mmextra.PrefixSegDataset',
    prefixes=['0006R0_', '0016E5_'],
    data_root=data_root,
    data_prefix=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'),
    metainfo={{_base_.metainfo}},
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        half,
        crop,
        dict(type='PackSegInputs'),
    ],
)
target = dict(
    type='mmextra.PrefixSegDataset',
    prefixes=['0001TP_'],
    data_root=data_root,
    # Labels are there, and never read.
    data_prefix=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'),
    metainfo={{_base_.metainfo}},
    pipeline=[dict(type='LoadImageFromFile'), half, crop, dict(type='PackSegInputs')],
)
train_dataloader = dict(
    _delete_=True,
    batch_size=4,
    num_workers=0,
    sampler=dict(type='mmextra.DomainPairSampler'),
    dataset=dict(
        type='mmextra.DomainPairDataset', source=source, target=target, class_balanced=True
    ),
)
val_dataloader = dict(
    _delete_=True,
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmextra.PrefixSegDataset',
        prefixes=['0001TP_'],
        data_root=data_root,
        data_prefix=dict(img_path='img_dir/test', seg_map_path='ann_dir/test'),
        metainfo={{_base_.metainfo}},
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='mmextra.ClassIoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
