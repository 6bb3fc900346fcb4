_base_ = 'mmpretrain::deit/deit-small_4xb256_in1k.py'

model = dict(backbone=dict(patch_cfg=dict(conv_type='mmextra.ScaledReLUConvStem')))

# DeiT's schedule: 5 epochs of warm-up and gradients that are not clipped (the host's DeiT configs have Swin's 20, and
# clip them, which would hide the instability that the stem is for). The learning rate, 5e-4 for 512 images, the batch
# of 1024, weight decay 0.05 without norms, and 300 epochs are the host's already.
optim_wrapper = dict(clip_grad=None)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5),
]
