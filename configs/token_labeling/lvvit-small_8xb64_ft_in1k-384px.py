# Fine-tuning at 384. Positions are resized when `load_from` is read.
_base_ = './lvvit-small_8xb128_in1k.py'

load_from = 'work_dirs/lvvit-small_8xb128_in1k/epoch_310.pth'
model = dict(backbone=dict(img_size=384))
data_preprocessor = dict(label_size=24)

train_pipeline = _base_.train_pipeline
train_pipeline[4]['scale'] = 384
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # crop ratio 0.9
    dict(type='ResizeEdge', scale=426, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=384),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=64, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# batch 512; the learning rate stays at 5e-6, weight decay 1e-8. The 30 epochs, 5 of them of
# warm-up, are those of VOLO's fine-tuning: our assumption.
optim_wrapper = dict(optimizer=dict(lr=5e-6, weight_decay=1e-8))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.2, by_epoch=True, end=5, convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=512)
