# The paper's claim at the size of a demonstration: a class is a coarse shape and a fine texture of
# 4 pixels, and fine tokens with outlook attention should tell the textures better. To hold against
# it: volo-nano-vit_1xb64-8e_textured-shapes_demo.py.
_base_ = 'mmpretrain::_base_/default_runtime.py'

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
        loss=dict(type='mmextra.TokenLabelLoss', dense_weight=0.5),
    ),
)
data_preprocessor = dict(
    type='mmextra.TokenLabelDataPreprocessor',
    num_classes=20,
    mean=[100.0, 100.0, 100.0],
    std=[60.0, 60.0, 60.0],
)
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmextra.TexturedShapes', num_images=6000, pipeline=[dict(type='PackInputs')]
    ),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmextra.TexturedShapes', num_images=1000, seed=1, pipeline=[dict(type='PackInputs')]
    ),
)
val_evaluator = [
    dict(type='Accuracy', topk=(1,)),
    dict(type='mmextra.FactorAccuracy', factors=dict(shape=5, texture=4)),
]
test_dataloader = val_dataloader
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=8, val_interval=1)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
randomness = dict(seed=0)
