# The paper's claim at the size of a demonstration: a class is a coarse shape and a fine pattern of
# 4 pixels, and fine tokens with outlook attention should tell them better. To hold against it:
# volo-nano-vit_1xb64-8e_shapes-patterns_demo.py.
_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/datasets/drawn_images.py',
    '../_base_/schedules/small_classification.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmextra.VOLO',
        arch=dict(
            layers=(1, 1, 2, 1),
            embed_dims=(48, 96, 96, 96),
            num_heads=(2, 4, 4, 4),
            stem_channels=32,
        ),
        img_size=64,
        out_type='dense',
    ),
    head=dict(
        type='mmextra.TokenLabelClsHead',
        num_classes=20,
        in_channels=96,
        # There are no label maps, and patches of the ground show patterns of other classes: their classifier is not
        # trained, and has no say.
        aux_test_weight=0.0,
        loss=dict(type='mmextra.TokenLabelLoss', dense_weight=0.0),
    ),
)
data_preprocessor = dict(type='mmextra.TokenLabelDataPreprocessor', num_classes=20)
train_dataloader = dict(dataset=dict(task='shape_pattern'))
val_dataloader = dict(dataset=dict(task='shape_pattern'))
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='Accuracy', topk=(1,)),
    dict(type='mmextra.FactorAccuracy', factors=dict(shape=5, texture=4)),
]
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_epochs=8, val_interval=4)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
randomness = dict(seed=0)
