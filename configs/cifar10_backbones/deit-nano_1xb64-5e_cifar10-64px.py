# What the twelve backbones of this folder are held against: a small DeiT, 8x8 patches of 64x64 images. All of them have
# about 0.4 M parameters and the same recipe: one CIFAR-10 image in ten, five epochs.
_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/datasets/cifar10.py',
    '../_base_/schedules/small_classification.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=72, num_layers=6, num_heads=3, feedforward_channels=288),
        img_size=64,
        patch_size=8,
    ),
    head=dict(
        type='VisionTransformerClsHead',
        num_classes=10,
        in_channels=72,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='Resize', scale=64),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=64),
    dict(type='PackInputs'),
]
# Sorted by class: every tenth image keeps the classes equally frequent.
train_dataloader = dict(
    persistent_workers=True,
    dataset=dict(pipeline=train_pipeline, indices=list(range(0, 50000, 10))),
)
val_dataloader = dict(
    persistent_workers=True,
    dataset=dict(pipeline=test_pipeline, indices=list(range(0, 10000, 2))),
)
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_epochs=5, val_interval=5)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=5, max_keep_ckpts=1))
randomness = dict(seed=0)
