# Source only: what phase 1 starts from, 16 classes. The length of this stage is our choice.
_base_ = [
    'mmseg::_base_/default_runtime.py',
    '../_base_/models/aspp-sum_r101-d8.py',
    '../_base_/datasets/synthia_cityscapes.py',
    '../_base_/schedules/decouplenet_phase2.py',
]

model = dict(decode_head=dict(num_classes=16))
train_dataloader = dict(
    _delete_=True,
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset={{_base_.source}},
)
optim_wrapper = dict(optimizer=dict(lr=2.5e-4))
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=20000, by_epoch=False)]
model_wrapper_cfg = None  # one optimizer, one backward pass
train_cfg = dict(max_iters=20000)
