_base_ = './scaled-relu_deit-base_16xb64_in1k.py'

# DeiT's fine-tuning at 384 px, which is that of 224 px but for a batch of 512, a small constant rate, hardly any weight
# decay, and 30 epochs. (The host's config of this size has the schedule of the first ViT.) Positions are resized when
# `load_from` is read.
load_from = 'work_dirs/scaled-relu_deit-base_16xb64_in1k/epoch_300.pth'
model = dict(backbone=dict(img_size=384))

train_pipeline = _base_.train_pipeline
train_pipeline[1]['scale'] = 384
# 384 of 438, as 224 of 256.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=438, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=384),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=5e-6, weight_decay=1e-8))
param_scheduler = []
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=512)
