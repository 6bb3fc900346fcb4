_base_ = './lvvit-large_8xb128_in1k.py'

load_from = 'work_dirs/lvvit-large_8xb128_in1k/epoch_310.pth'
model = dict(backbone=dict(img_size=448))
data_preprocessor = dict(label_size=28)

train_pipeline = _base_.train_pipeline
train_pipeline[4]['scale'] = 448
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # crop ratio 1
    dict(type='ResizeEdge', scale=448, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=448),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=64, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# The recipe for 384: batch 512, 5e-6 throughout, weight decay 1e-8; 30 epochs are our assumption.
optim_wrapper = dict(optimizer=dict(lr=5e-6, weight_decay=1e-8))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.2, by_epoch=True, end=5, convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=512)
