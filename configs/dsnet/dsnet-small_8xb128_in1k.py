_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    'mmpretrain::_base_/default_runtime.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmextra.DSNet',
        arch='s',
        drop_path_rate=0.1,
        # As the published models were trained: the rates start again at 0 in every stage.
        dpr_mode='published',
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=512,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1, 5),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)

# DeiT's recipe: batch 1024 with repeated augmentation. RandAugment of magnitude 9 +- 0.5, erasing with probability
# 0.25, AdamW with 5e-4 for 512 images, weight decay 0.05 but for norms and biases, and 300 epochs are the base's
# already. So are the images of the test, 224 out of 256 (PaddleClas: out of 248).
train_dataloader = dict(batch_size=128, sampler=dict(type='RepeatAugSampler', shuffle=True))

# 5 epochs of warm-up from 1e-6, then a cosine to 1e-5.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5),
]
