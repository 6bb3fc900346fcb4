# A Refiner for two CPU cores: 12 layers of 96 channels on drawn images of 48 px, 36 patches. The hook logs how alike
# the maps are that consecutive layers use. The same number of plain layers, without refined maps:
# refiner-nano-plain_1xb64-15e_shapes-patterns_demo.py. Other seeds: --cfg-options randomness.seed=1
_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/datasets/drawn_images.py',
    '../_base_/schedules/small_classification.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmextra.RefinerViT',
        arch=dict(embed_dims=96, num_layers=12, num_heads=4, feedforward_channels=288),
        img_size=48,
        patch_size=8,
    ),
    head=dict(
        type='VisionTransformerClsHead',
        num_classes=20,
        in_channels=96,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
dataset = dict(task='shape_pattern', size=48)
train_dataloader = dict(dataset=dict(num_images=2000, **dataset))
val_dataloader = dict(dataset=dict(**dataset))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=1e-3))
custom_hooks = [dict(type='mmextra.AttentionSimilarityHook', interval=1, num_last=8)]
default_hooks = dict(logger=dict(interval=20))
randomness = dict(seed=0)
