# The paper's claim at the size of a demonstration: no warm-up, and a learning rate that is one of 5e-4, 2e-3, 5e-3
# (`--cfg-options optim_wrapper.optimizer.lr=5e-3`). Stems to hold it against, with
# `--cfg-options model.backbone.patch_cfg.conv_type=...`: Conv2d (patchify), mmextra.ConvStem, mmextra.ConvBNStem,
# mmextra.ConvReLUStem.
_base_ = ['mmpretrain::_base_/default_runtime.py', '../_base_/datasets/cifar10.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=96, num_layers=6, num_heads=3, feedforward_channels=384),
        img_size=32,
        patch_size=4,
        patch_cfg=dict(conv_type='mmextra.ScaledReLUConvStem'),
    ),
    head=dict(
        type='VisionTransformerClsHead',
        num_classes=10,
        in_channels=96,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
# One image in ten. They are sorted by class: so the classes stay equally frequent.
train_dataloader = dict(batch_size=128, dataset=dict(indices=list(range(0, 50000, 10))))
val_dataloader = dict(dataset=dict(indices=list(range(0, 10000, 5))))
test_dataloader = val_dataloader

optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(by_epoch=True, max_epochs=8, val_interval=1)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(logger=dict(interval=10))
custom_hooks = [dict(type='mmextra.StemDiversityHook', interval=10)]
randomness = dict(seed=0)
