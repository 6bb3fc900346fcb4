# The paper's claim at the size of a demonstration: a ViT for two CPU cores on drawn images of 32 px, without warm-up,
# with a learning rate that is one of 5e-4, 2e-3, 5e-3 (--cfg-options optim_wrapper.optimizer.lr=5e-3). The hook counts
# the leaps of the loss. Stems to hold it against: -patchify, -conv, -conv-bn, -conv-relu.
_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/datasets/object_among_textures.py',
    '../_base_/schedules/small_classification.py',
]

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
train_dataloader = dict(batch_size=32, dataset=dict(num_images=2000, size=32))
val_dataloader = dict(dataset=dict(size=32))
test_dataloader = val_dataloader

param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=8, val_interval=4)
custom_hooks = [dict(type='mmextra.LossSpikeHook')]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1))
randomness = dict(seed=0)
