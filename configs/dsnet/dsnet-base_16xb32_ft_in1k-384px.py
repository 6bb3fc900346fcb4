# Not in the paper: DeiT's fine-tuning at a higher resolution. There are no positions to resize; the global streams grow
# with the image, to 12x12. Start from the model trained at 224: --cfg-options load_from=...
_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_384.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    'mmpretrain::_base_/default_runtime.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmextra.DSNet', arch='b', drop_path_rate=0.1, dpr_mode='published'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=512,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1, 5),
    ),
)

# 5e-6 for 512 images, without warm-up and almost without decay, for 30 epochs.
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(optimizer=dict(lr=5e-6, weight_decay=1e-8))
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True)]
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=512)
