# SYNTHIA (RAND-CITYSCAPES) with labels, Cityscapes without: the 16 classes that both have.
# Labels in Cityscapes' training ids, `*_labelTrainIds.png` (SYNTHIA: tools/train_ids.py synthia).
_base_ = './gta5_cityscapes.py'

data_root = '{{$MMEXTRA_DATA:data}}'
classes = (
    'road',
    'sidewalk',
    'building',
    'wall',
    'fence',
    'pole',
    'traffic light',
    'traffic sign',
    'vegetation',
    'sky',
    'person',
    'rider',
    'car',
    'bus',
    'motorcycle',
    'bicycle',
)
source = dict(
    data_root=f'{data_root}/synthia',
    data_prefix=dict(img_path='RGB', seg_map_path='GT/LABELS'),
    metainfo=dict(classes=classes),
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        {{_base_.crop}},
        dict(type='PackSegInputs'),
    ],
)
train_dataloader = dict(
    dataset=dict(
        source=source,
        target=dict(metainfo=dict(classes=classes)),
        class_counts=f'{data_root}/synthia/class_counts.npy',
    )
)
val_dataloader = dict(dataset=dict(metainfo=dict(classes=classes)))
test_dataloader = val_dataloader
# The mean over 13 classes leaves out wall, fence and pole.
val_evaluator = dict(subsets=dict(mIoU13=[*classes[:3], *classes[6:]]))
test_evaluator = val_evaluator
