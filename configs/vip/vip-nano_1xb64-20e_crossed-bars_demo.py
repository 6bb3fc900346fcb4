# The paper's claim at the size of a demonstration: a class is where two bars lie, and mixing along
# height and width should need few images to learn it. To hold against it, with as many parameters:
# vip-nano-mixer_1xb64-20e_crossed-bars_demo.py.
_base_ = 'mmpretrain::_base_/default_runtime.py'

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmextra.VisionPermutator',
        arch=dict(
            patch_size=8, layers=(4,), embed_dims=(64,), transitions=(False,), segment_dims=(8,)
        ),
        img_size=64,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=25, in_channels=64),
)
data_preprocessor = dict(
    num_classes=25, mean=[100.0, 100.0, 100.0], std=[60.0, 60.0, 60.0], to_rgb=True
)
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='mmextra.CrossedBars', num_images=1500, pipeline=[dict(type='PackInputs')]),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmextra.CrossedBars', num_images=1000, seed=1, pipeline=[dict(type='PackInputs')]
    ),
)
val_evaluator = [
    dict(type='Accuracy', topk=(1,)),
    dict(type='mmextra.FactorAccuracy', factors=dict(row=5, column=5)),
]
test_dataloader = val_dataloader
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=20, val_interval=4)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
randomness = dict(seed=0)
