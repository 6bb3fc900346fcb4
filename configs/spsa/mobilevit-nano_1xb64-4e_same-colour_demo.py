# For two CPU cores: are there two discs of one colour anywhere in the image? Eight blocks, four of them convolutions,
# four with the host's attention, to hold SPSA against.
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
            ['mobilenetv2', 16, 2, 2, 2],
            ['mobilenetv2', 24, 2, 1, 2],
            ['mobilevit', 32, 1, 32, 64, 4, 2],  # 12x12 positions, each of which sees 71 pixels
        ],
        stem_channels=8,
        last_exp_factor=2,
        out_indices=(2,),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=2,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
train_dataloader = dict(dataset=dict(task='same_colour', size=96, num_images=10000))
val_dataloader = dict(dataset=dict(task='same_colour', size=96))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=4, val_interval=4)
default_hooks = dict(logger=dict(interval=20))
randomness = dict(seed=0)
