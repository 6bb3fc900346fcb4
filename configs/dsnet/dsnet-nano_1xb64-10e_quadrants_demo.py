# A DS-Net for two CPU cores, on images whose label is a global arrangement and a fine pattern. The ablations with one
# stream and as many parameters: dsnet-nano-local_1xb64-10e_quadrants_demo.py and dsnet-nano-global_....py.
_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/datasets/drawn_images.py',
    '../_base_/schedules/small_classification.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmextra.DSNet',
        arch=dict(
            embed_dims=(16, 32, 48, 64), depths=(1, 1, 2, 1), num_heads=(1, 2, 3, 4), mlp_ratio=4.0
        ),
        attn_drop_rate=0.0,  # so few epochs leave nothing to overfit
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=18,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
val_evaluator = [
    dict(type='Accuracy', topk=(1,)),
    dict(type='mmextra.FactorAccuracy', factors=dict(quadrants=6, texture=3)),
]
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=10)
default_hooks = dict(logger=dict(interval=20))
randomness = dict(seed=0)
