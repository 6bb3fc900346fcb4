# A Refiner for two CPU cores: 12 layers of 96 channels on drawn images of 32 px, 16 patches. The hook logs how alike
# the maps are that consecutive layers use. The same number of plain layers, without refined maps:
# refiner-nano-plain_1xb32-15e_distractors_demo.py. Other seeds: --cfg-options randomness.seed=1
_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/datasets/object_among_textures.py',
    '../_base_/schedules/small_classification.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmextra.RefinerViT',
        arch=dict(embed_dims=96, num_layers=12, num_heads=4, feedforward_channels=288),
        img_size=32,
        patch_size=8,
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
optim_wrapper = dict(optimizer=dict(lr=1e-3))
custom_hooks = [dict(type='mmextra.AttentionSimilarityHook', each_pair=True)]
default_hooks = dict(logger=dict(interval=20))
randomness = dict(seed=0)
