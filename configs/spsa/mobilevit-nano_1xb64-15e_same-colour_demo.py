# For two CPU cores: are there two discs of one colour anywhere in the image? With the host's attention, to hold SPSA
# against.
_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/datasets/drawn_images.py',
    '../_base_/schedules/small_classification.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='MobileViT',
        arch=[
            ['mobilenetv2', 16, 1, 1, 2],
            ['mobilenetv2', 24, 2, 1, 2],
            ['mobilevit', 32, 2, 48, 96, 2, 2],
            ['mobilevit', 48, 1, 48, 96, 2, 2],
        ],
        stem_channels=16,
        last_exp_factor=2,
        out_indices=(3,),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=2,
        in_channels=96,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
train_dataloader = dict(dataset=dict(task='same_colour', size=96))
val_dataloader = dict(dataset=dict(task='same_colour', size=96))
test_dataloader = dict(dataset=dict(task='same_colour', size=96))
default_hooks = dict(logger=dict(interval=20))
randomness = dict(seed=0)
