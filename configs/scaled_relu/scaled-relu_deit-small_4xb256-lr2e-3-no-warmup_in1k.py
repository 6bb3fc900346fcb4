_base_ = './scaled-relu_deit-small_4xb256_in1k.py'

# A corner of the paper's stability grid: twice DeiT's learning rate (1e-3 for 512 images) and no warm-up.
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True)]
custom_hooks = [
    dict(type='EMAHook', momentum=4e-5, priority='ABOVE_NORMAL'),
    dict(type='mmextra.StemDiversityHook', interval=100),
]
