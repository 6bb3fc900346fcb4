# CamVid: source only, the start of phase 1 and what adaptation is held against.
_base_ = [
    'mmseg::_base_/default_runtime.py',
    '../_base_/models/aspp-sum_r18-small.py',
    '../_base_/datasets/camvid_day_dusk.py',
    '../_base_/schedules/small_domain_adaptation.py',
]

model = dict(
    data_preprocessor=dict(size=(128, 160)),
    decode_head=dict(num_classes=11, dilations=(2, 4, 6, 8)),
)
train_dataloader = dict(
    _delete_=True,
    batch_size=4,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset={{_base_.source}},
)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=700, by_epoch=False)]
train_cfg = dict(max_iters=700)
default_hooks = dict(checkpoint=dict(interval=700))
