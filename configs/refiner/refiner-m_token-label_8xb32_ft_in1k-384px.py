_base_ = './refiner-m_token-label_8xb32_in1k.py'

# Positions are resized bilinearly with aligned corners when the weights of 224 px are loaded:
# --cfg-options load_from=...
model = dict(backbone=dict(img_size=384))
data_preprocessor = dict(label_size=24)  # the grid of tokens

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmextra.LoadTokenLabel', data_root='data/label_top5_train_nfnet'),
    dict(type='mmextra.TokenLabelRandomFlip', prob=0.5),
    dict(
        type='mmextra.TokenLabelRandomResizedCrop',
        scale=384,
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='PackInputs', algorithm_keys=('token_label', 'crop_coords')),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
# 1.0 of the shorter edge.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=384, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=384),
    dict(type='PackInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# The authors publish weights but no schedule for this size. This is the one of LV-ViT: a small constant rate, neither
# RandAugment nor random erasing.
optim_wrapper = dict(optimizer=dict(lr=5e-6, weight_decay=1e-8))
param_scheduler = []
train_cfg = dict(max_epochs=30)
