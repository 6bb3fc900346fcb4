_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    'mmpretrain::_base_/default_runtime.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmextra.VisionPermutator', arch='s7', drop_path_rate=0.1),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=384,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        cal_acc=False,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)

# RandAugment m9-mstd0.5-inc1 and erasing with probability 0.25 are the base's.
train_dataloader = dict(batch_size=256)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # crop ratio 0.9
    dict(type='ResizeEdge', scale=248, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
val_dataloader = dict(batch_size=256, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# 2e-3 at batch 2048; weight decay 0.05 but for norms and biases
optim_wrapper = dict(optimizer=dict(lr=2e-3))
# 20 epochs of warm-up from 1e-6, cosine to 1e-5 until epoch 300, 10 more at 1e-5
param_scheduler = [
    dict(
        type='LinearLR', start_factor=1e-6 / 2e-3, by_epoch=True, end=20, convert_to_iter_based=True
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=20,
        end=300,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=310)
auto_scale_lr = dict(base_batch_size=2048)
