# Eight layers on 8x8 tokens of 8 pixels: three on all of them, two that find nine semantic tokens, three on these. To
# hold against: the same without sparsification (-plain), and with tokens that are pooled and no more (-pooled).
_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/datasets/object_among_textures.py',
    '../_base_/schedules/small_classification.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmextra.STViT',
        arch=dict(embed_dims=96, num_layers=8, num_heads=3, feedforward_channels=384),
        img_size=64,
        patch_size=8,
        base_layers=3,
        stgm_layers=2,
        num_semantic=3,
        pool='learned',
    ),
    head=dict(
        type='VisionTransformerClsHead',
        num_classes=10,
        in_channels=96,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
train_dataloader = dict(batch_size=32, dataset=dict(num_images=2500))

optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_epochs=10, val_interval=5)
default_hooks = dict(logger=dict(interval=20))
randomness = dict(seed=0)
