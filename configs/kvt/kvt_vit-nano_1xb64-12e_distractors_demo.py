# A ViT for two CPU cores on drawn images: one object of 16 pixels among fifteen textures. Each of 65 tokens keeps 24
# keys. The second hook logs how much of the class token's attention goes to the textures. Dense attention:
# kvt_vit-nano-dense_1xb64-12e_distractors_demo.py. Other seeds: --cfg-options randomness.seed=1
_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/datasets/object_among_textures.py',
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
        num_classes=10,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
    init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
)
train_cfg = dict(max_epochs=12, val_interval=4)
custom_hooks = [
    dict(type='mmextra.KNNAttentionHook', topk=24),
    dict(type='mmextra.DistractorAttentionHook'),
]
default_hooks = dict(logger=dict(interval=10))
randomness = dict(seed=0)
