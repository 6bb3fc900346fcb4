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
# DeiT's schedule: 5 epochs of warm-up (the host's DeiT configs have Swin's 20).
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5),
]
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'.global_tokens': dict(decay_mult=0.0)}))
