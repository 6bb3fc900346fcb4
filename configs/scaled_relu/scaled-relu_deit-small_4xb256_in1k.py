_base_ = 'mmpretrain::deit/deit-small_4xb256_in1k.py'

# DeiT's own recipe, which the host's configs of the small models simplify: stochastic depth 0.1, repeated augmentation,
# EMA with decay 0.99996, 5 epochs of warm-up, and gradients that are not clipped (the host has Swin's 20 epochs, and
# clips them, which would hide the instability that the stem is for). The learning rate, 5e-4 for 512 images, the batch
# of 1024, weight decay 0.05 without norms, and 300 epochs are the host's already.
model = dict(
    backbone=dict(
        drop_path_rate=0.1,
        patch_cfg=dict(conv_type='mmextra.ScaledReLUConvStem'),
    )
)
train_dataloader = dict(sampler=dict(type='RepeatAugSampler', shuffle=True))
optim_wrapper = dict(clip_grad=None)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5),
]
custom_hooks = [dict(type='EMAHook', momentum=4e-5, priority='ABOVE_NORMAL')]
