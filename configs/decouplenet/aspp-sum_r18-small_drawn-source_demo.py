# Coloured shapes: source only, the start of phase 1 and what adaptation is held against.
_base_ = [
    'mmseg::_base_/default_runtime.py',
    '../_base_/models/aspp-sum_r18-small.py',
    '../_base_/datasets/drawn_domains.py',
    '../_base_/schedules/small_domain_adaptation.py',
]

train_dataloader = dict(
    _delete_=True,
    batch_size=8,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset={{_base_.source}},
)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=600, by_epoch=False)]
train_cfg = dict(max_iters=600)
default_hooks = dict(checkpoint=dict(interval=600))
