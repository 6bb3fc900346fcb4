# Coloured shapes: the upper bound, with the labels of the target for as long as the source and phase 1 take together.
_base_ = './aspp-sum_r18-small_drawn-source_demo.py'

train_dataloader = dict(dataset=dict(domain='target', seed=1))
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=2100, by_epoch=False)]
train_cfg = dict(max_iters=2100)
default_hooks = dict(checkpoint=dict(interval=2100))
