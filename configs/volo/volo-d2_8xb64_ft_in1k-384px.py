_base_ = './volo-d2_8xb128_in1k.py'

load_from = 'work_dirs/volo-d2_8xb128_in1k/epoch_310.pth'
model = dict(backbone=dict(img_size=384), head=dict(loss=dict(with_gt=True)))
data_preprocessor = dict(label_size=24)

train_pipeline = _base_.train_pipeline
train_pipeline[4]['scale'] = 384
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # crop ratio 0.96
    dict(type='ResizeEdge', scale=400, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=384),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=64, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# 8e-6 to 4e-6 in 30 epochs, 5 of them of warm-up; weight decay 1e-8. The batch of 512 is ours.
optim_wrapper = dict(optimizer=dict(lr=8e-6, weight_decay=1e-8))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.125, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', eta_min=4e-6, by_epoch=True, begin=5, convert_to_iter_based=True
    ),
]
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=512)
