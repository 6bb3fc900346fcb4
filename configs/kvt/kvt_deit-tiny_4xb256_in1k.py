_base_ = 'mmpretrain::deit/deit-tiny_4xb256_in1k.py'

# DeiT's own recipe, which the host's configs of the small models simplify: stochastic depth 0.1, repeated augmentation,
# EMA with decay 0.99996, 5 epochs of warm-up from 1e-6, 10 more epochs at the end, and gradients that are not clipped.
model = dict(backbone=dict(drop_path_rate=0.1))
train_dataloader = dict(sampler=dict(type='RepeatAugSampler', shuffle=True))
optim_wrapper = dict(clip_grad=None)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=295, eta_min=1e-5, by_epoch=True, begin=5, end=300),
]
train_cfg = dict(max_epochs=310)

# Each of the 197 tokens attends to the 100 with the largest logits, in every layer.
custom_hooks = [
    dict(type='mmextra.KNNAttentionHook', topk=100),
    dict(type='EMAHook', momentum=4e-5, priority='ABOVE_NORMAL'),
]
