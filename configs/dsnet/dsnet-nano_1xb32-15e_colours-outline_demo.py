# A DS-Net for two CPU cores. Its images have four small objects: how many colours do they have, and which outline have
# all of them? The ablations with one stream and as many parameters:
# dsnet-nano-local_1xb32-15e_colours-outline_demo.py and dsnet-nano-global_....py.
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
        num_classes=32,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
task = dict(task='colours_outline', noise=12)
train_dataloader = dict(batch_size=32, dataset=task)
val_dataloader = dict(dataset=task)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='Accuracy', topk=(1,)),
    dict(type='mmextra.FactorAccuracy', factors=dict(colours=4, outline=8)),
]
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=15)
default_hooks = dict(logger=dict(interval=20))
randomness = dict(seed=0)
