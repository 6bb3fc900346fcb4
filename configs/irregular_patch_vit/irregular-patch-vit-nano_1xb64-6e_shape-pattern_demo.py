# For two CPU cores: 20 classes, a large shape times a fine pattern. About 20 million multiply-adds, as those that it is
# held against have: irregular-patch-vit-nano-mean_..., conv-stem-vit-nano_... and deit-nano_..., in this folder.
_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/datasets/drawn_images.py',
    '../_base_/schedules/small_classification.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmextra.IrregularPatchViT',
        arch=dict(embed_dims=128, num_layers=4, num_heads=4, stem_channels=(8, 16, 32, 48)),
        img_size=96,
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=20,
        in_channels=128,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
train_dataloader = dict(dataset=dict(task='shape_pattern', size=96))
val_dataloader = dict(dataset=dict(task='shape_pattern', size=96))
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='Accuracy', topk=(1,)),
    dict(type='mmextra.FactorAccuracy', factors=dict(shape=5, texture=4)),
]
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=6, val_interval=3)
default_hooks = dict(logger=dict(interval=20))
randomness = dict(seed=0)
