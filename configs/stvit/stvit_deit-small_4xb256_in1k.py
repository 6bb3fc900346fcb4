_base_ = 'mmpretrain::deit/deit-small_4xb256_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.STViT',
        arch='deit-small',
        base_layers=4,  # of 12 on the image tokens
        stgm_layers=2,  # that find the cluster centres
        num_semantic=4,  # 16 semantic tokens in the other 6 layers
        pool='learned',
        drop_path_rate=0.1,
    )
)
# DeiT's recipe where the host's configs have Swin's: repeated augmentation, 5 epochs of warm-up instead of 20, and
# gradients that are not clipped.
train_dataloader = dict(sampler=dict(type='RepeatAugSampler', shuffle=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5),
]
optim_wrapper = dict(
    clip_grad=None, paramwise_cfg=dict(custom_keys={'.global_tokens': dict(decay_mult=0.0)})
)
