# VOC 2012 without background, whose pixels become 255. Padding is left to the data preprocessor, which
# knows the label for it.
_base_ = 'mmseg::_base_/datasets/pascal_voc12_aug.py'

classes = (
    'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
    'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train',
    'tvmonitor',
)  # fmt: skip
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # The shorter side becomes 512, a window, however long the other one is.
    dict(type='ResizeShortestEdge', scale=512, max_size=16384),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
voc = dict(
    type='PascalVOCDataset',
    data_root='data/VOCdevkit/VOC2012',
    metainfo=dict(classes=classes),
    pipeline=train_pipeline,
)
train_dataloader = dict(
    batch_size=2,  # on each of 8 GPUs
    dataset=dict(
        datasets=[
            dict(
                **voc,
                data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
                ann_file='ImageSets/Segmentation/train.txt',
            ),
            dict(
                **voc,
                data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassAug'),
                ann_file='ImageSets/Segmentation/aug.txt',
            ),
        ]
    ),
)
val_dataloader = dict(dataset=dict(metainfo=dict(classes=classes), pipeline=test_pipeline))
test_dataloader = val_dataloader
