# Not in the paper, whose layers fit one image size: grids are resized around the branches that mix
# along height and width. The schedule is that of VOLO's fine-tuning.
_base_ = './vip-small7_8xb256_in1k.py'

load_from = 'work_dirs/vip-small7_8xb256_in1k/epoch_310.pth'
model = dict(backbone=dict(img_size=384, size_mode='resize'))

train_pipeline = _base_.train_pipeline
train_pipeline[1]['scale'] = 384
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

optim_wrapper = dict(optimizer=dict(lr=8e-6, weight_decay=1e-8))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.125, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', eta_min=4e-6, by_epoch=True, begin=5, convert_to_iter_based=True
    ),
]
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=512)
