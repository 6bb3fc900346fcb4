_base_ = [
    '../_base_/datasets/imagenet_token_labeling_224.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    'mmpretrain::_base_/default_runtime.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmextra.LVViT', arch='s', drop_path_rate=0.1, mix_token=True, out_type='dense'
    ),
    head=dict(
        type='mmextra.TokenLabelClsHead',
        num_classes=1000,
        in_channels=384,
        loss=dict(type='mmextra.TokenLabelLoss', cls_weight=1.0, dense_weight=1.0),
    ),
)

test_pipeline = [
    dict(type='LoadImageFromFile'),
    # crop ratio 0.9
    dict(type='ResizeEdge', scale=248, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
val_dataloader = dict(batch_size=128, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# 1.6e-3 at batch 1024; weight decay 0.05 but for norms, biases, positions and class token
optim_wrapper = dict(
    optimizer=dict(lr=1.6e-3),
    paramwise_cfg=dict(
        custom_keys={'.cls_token': dict(decay_mult=0.0), '.pos_embed': dict(decay_mult=0.0)}
    ),
)
# 5 epochs of warm-up from 1e-6, cosine to 1e-5 until epoch 300, 10 more at 1e-5
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-6 / 1.6e-3,
        by_epoch=True,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=5,
        end=300,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=310)
# decay 0.99992
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExponentialMovingAverage',
        momentum=8e-5,
        priority='ABOVE_NORMAL',
    )
]
