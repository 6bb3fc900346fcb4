# The schedule of DeepViT and Refiner: 32 images on each GPU, 256 together (their number of GPUs is not published).
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={'.cls_token': dict(decay_mult=0.0), '.pos_embed': dict(decay_mult=0.0)},
    ),
)
# 5 epochs of warm-up from 1e-6, a cosine to 1e-5 until epoch 300, and 10 epochs at 1e-5.
param_scheduler = [
    dict(type='LinearLR', start_factor=2e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=295, eta_min=1e-5, by_epoch=True, begin=5, end=300),
]
train_cfg = dict(by_epoch=True, max_epochs=310, val_interval=1)
val_cfg = dict()
test_cfg = dict()
# The learning rate is not scaled unless asked for with --auto-scale-lr.
auto_scale_lr = dict(base_batch_size=256)
custom_hooks = [dict(type='EMAHook', momentum=4e-5, priority='ABOVE_NORMAL')]  # decay 0.99996
