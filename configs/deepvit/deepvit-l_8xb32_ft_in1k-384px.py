_base_ = './deepvit-l_8xb32_in1k.py'

model = dict(backbone=dict(img_size=384))

# The whole of the image is resized to 384.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=384, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=384, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=384),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# The authors publish a model but no schedule for this size. This is the one of LV-ViT. Start from the weights of
# deepvit-l_8xb32_in1k.py: --cfg-options load_from=...; positions are resized when they are loaded.
optim_wrapper = dict(optimizer=dict(lr=5e-6, weight_decay=1e-8))
param_scheduler = []
train_cfg = dict(max_epochs=30)
