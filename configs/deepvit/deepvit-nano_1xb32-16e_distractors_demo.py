# A deep and narrow ViT for two CPU cores: 16 layers of 64 channels, 36 patches of drawn images of 48 px. As in
# DeepViT-S, the last five layers have re-attention, and the residual branches are scaled by 0.5. The hook logs how
# alike the maps of consecutive layers are, those of the last eight layers (seven pairs) apart. The same model without
# re-attention: deepvit-nano-plain_1xb32-16e_distractors_demo.py. Other seeds: --cfg-options randomness.seed=1
_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/datasets/object_among_textures.py',
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
            transform_mask=[False] * 11 + [True] * 5,
            transform_scale=True,
            residual_scale=0.5,
        ),
        img_size=48,
        patch_size=8,
    ),
    head=dict(
        type='VisionTransformerClsHead',
        num_classes=10,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
train_dataloader = dict(batch_size=32, dataset=dict(num_images=4000, size=48))
val_dataloader = dict(dataset=dict(size=48))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=5e-4))
# Re-attention needs a slow start: see the README.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=True, end=4, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=4, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=16, val_interval=4)
custom_hooks = [dict(type='mmextra.AttentionSimilarityHook', num_last=7, each_pair=True)]
default_hooks = dict(logger=dict(interval=20))
randomness = dict(seed=0)
