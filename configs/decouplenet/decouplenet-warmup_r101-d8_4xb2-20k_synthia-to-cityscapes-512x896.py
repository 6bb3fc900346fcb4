# Warm-up, an option before phase 1: adversarial alignment of the outputs alone, all layers shared.
_base_ = './decouplenet_r101-d8_4xb2-60k_synthia-to-cityscapes-512x896.py'

model = dict(decouple=False, feat_discriminator=None, adapt_cfg=dict(adv_src=0, st=0))
optim_wrapper = dict(feat_discriminator=None)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=20000, by_epoch=False)]
train_cfg = dict(max_iters=20000)
