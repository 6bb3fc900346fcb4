# The paper's claim at the size of a demonstration: a class is where two bars lie, and mixing along
# height and width should need few images to learn it. To hold against it, with as many parameters:
# vip-nano-mixer_1xb64-20e_crossed-bars_demo.py.
_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/datasets/drawn_images.py',
    '../_base_/schedules/small_classification.py',
]

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
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='mmextra.CrossedBars',
        num_images=1500,
        pipeline=[dict(type='PackInputs')],
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='mmextra.CrossedBars',
        num_images=1000,
        seed=1,
        pipeline=[dict(type='PackInputs')],
    )
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='Accuracy', topk=(1,)),
    dict(type='mmextra.FactorAccuracy', factors=dict(row=5, column=5)),
]
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=20, val_interval=4)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
randomness = dict(seed=0)
