# A ViT for two CPU cores on drawn images: do two of six discs have the same colour? Most of the 65 tokens show
# nothing but background. Dense attention: --cfg-options custom_hooks.0.topk=65. Other seeds:
# --cfg-options randomness.seed=1
_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/datasets/drawn_images.py',
    '../_base_/schedules/small_classification.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
        img_size=64,
        patch_size=8,
    ),
    head=dict(
        type='VisionTransformerClsHead',
        num_classes=2,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
    init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
)
train_dataloader = dict(dataset=dict(task='same_colour'))
val_dataloader = dict(dataset=dict(task='same_colour'))
test_dataloader = val_dataloader
train_cfg = dict(val_interval=1)
custom_hooks = [dict(type='mmextra.KNNAttentionHook', topk=24)]
default_hooks = dict(logger=dict(interval=20))
randomness = dict(seed=0)
