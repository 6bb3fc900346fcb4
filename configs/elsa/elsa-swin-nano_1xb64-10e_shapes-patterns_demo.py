# A label is a shape and a pattern of 2 pixels. To hold against it, with as many parameters:
# elsa-swin-nano-window_1xb64-10e_shapes-patterns_demo.py.
_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/datasets/drawn_images.py',
    '../_base_/schedules/small_classification.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmextra.ELSASwin',
        arch=dict(embed_dims=32, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8]),
        img_size=64,
        window_size=4,
        elsa_kernel=5,
        group_width=4,
        drop_path_rate=0.0,
        pad_small_map=True,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=20,
        in_channels=256,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
task = dict(task='shape_pattern', period=2, patterned_ground=True)
train_dataloader = dict(dataset=dict(**task, num_images=5000))
val_dataloader = dict(dataset=task)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='Accuracy', topk=(1,)),
    dict(type='mmextra.FactorAccuracy', factors=dict(shape=5, texture=4)),
]
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_epochs=10)
default_hooks = dict(logger=dict(interval=20))
randomness = dict(seed=0)
