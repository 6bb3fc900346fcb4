_base_ = 'mmpretrain::mobilevit/mobilevit-small_8xb128_in1k.py'

model = dict(
    # Not the host's class: an attention without parameters, of as many heads.
    backbone=dict(type='mmextra.SPSAMobileViT', arch='small', spsa=dict(num_heads=4, tau=1.0)),
    head=dict(
        loss=dict(_delete_=True, type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
    ),
)

# The host's config only tests. This is MobileViT's own recipe: crops of 256, smoothing 0.1, AdamW, 300 epochs, and a
# moving average of the weights.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=256),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-3, weight_decay=0.01),  # for 1024 images
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=3000),
    dict(
        type='CosineAnnealingLR',
        eta_min=2e-4,
        by_epoch=True,
        begin=2.4,  # 3000 iterations
        end=300,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
custom_hooks = [dict(type='EMAHook', momentum=5e-4, priority='ABOVE_NORMAL')]
auto_scale_lr = dict(base_batch_size=1024)
