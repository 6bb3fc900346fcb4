# Coloured shapes: phase 1, from aspp-sum_r18-small_drawn-source_demo.py.
_base_ = [
    'mmseg::_base_/default_runtime.py',
    '../_base_/models/decouplenet_r18-small.py',
    '../_base_/datasets/drawn_domains.py',
    '../_base_/schedules/small_domain_adaptation.py',
]

optim_wrapper = dict(
    _delete_=True,
    constructor='mmextra.MultiOptimWrapperConstructor',
    generator=dict(optimizer=dict(type='SGD', lr=5e-3, momentum=0.9, weight_decay=5e-4)),
    feat_discriminator=dict(optimizer=dict(type='Adam', lr=1e-4, betas=(0.9, 0.99))),
    out_discriminator=dict(optimizer=dict(type='Adam', lr=1e-4, betas=(0.9, 0.99))),
)
model_wrapper_cfg = dict(type='mmextra.StepwiseDataParallel')
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=1500, by_epoch=False)]
train_cfg = dict(max_iters=1500)
default_hooks = dict(checkpoint=dict(interval=1500))
load_from = 'work_dirs/aspp-sum_r18-small_drawn-source_demo/iter_600.pth'
