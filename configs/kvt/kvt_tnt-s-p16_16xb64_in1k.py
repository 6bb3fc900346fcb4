_base_ = [
    'mmpretrain::_base_/models/tnt_s_patch16_224.py',
    '../_base_/datasets/imagenet_bs32_half-mean_224.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    'mmpretrain::_base_/default_runtime.py',
]

# TNT is trained as DeiT is, with mean and standard deviation 0.5 and tested on 90 % of the shorter edge. (The host's
# config tests its weights, but trains without RandAugment, erasing, mixed and repeated images.) The learning rate, 5e-4
# for 512 images, weight decay 0.05 without norms, and 300 epochs are the base's already.
model = dict(
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
)
train_dataloader = dict(batch_size=64, sampler=dict(type='RepeatAugSampler', shuffle=True))
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            '.cls_token': dict(decay_mult=0.0),
            '.patch_pos': dict(decay_mult=0.0),
            '.pixel_pos': dict(decay_mult=0.0),
        }
    ),
    clip_grad=None,
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5),
]

# 100 of the 197 patches. The 16 pixels of a patch attend to all of each other.
custom_hooks = [
    dict(type='mmextra.KNNAttentionHook', topk=100),
    dict(type='EMAHook', momentum=4e-5, priority='ABOVE_NORMAL'),
]
