# A deep and narrow ViT for two CPU cores: 16 layers of 64 channels, 36 patches of drawn images of 48 px. The hook logs
# how alike the maps of consecutive layers are. The same model without re-attention:
# deepvit-nano-plain_1xb64-15e_shapes-patterns_demo.py. Other seeds: --cfg-options randomness.seed=1
_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/datasets/drawn_images.py',
    '../_base_/schedules/small_classification.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmextra.DeepViT',
        arch=dict(
            embed_dims=64,
            num_layers=16,
            num_heads=4,
            feedforward_channels=192,
            transform_mask=[True] * 16,
        ),
        img_size=48,
        patch_size=8,
    ),
    head=dict(
        type='VisionTransformerClsHead',
        num_classes=20,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
dataset = dict(task='shape_pattern', size=48)
train_dataloader = dict(dataset=dict(num_images=4000, **dataset))
val_dataloader = dict(dataset=dict(**dataset))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=1e-3))
custom_hooks = [dict(type='mmextra.AttentionSimilarityHook', interval=1, num_last=8)]
default_hooks = dict(logger=dict(interval=20))
randomness = dict(seed=0)
