# Baseline: the union of both sets as it is, for one set of three classes. What set A does not name,
# triangles, is background in its images, and so are squares in those of set B.
_base_ = [
    '../_base_/models/dino_small.py',
    '../_base_/datasets/metr_shapes.py',
    'mmdet::_base_/default_runtime.py',
]

# 800 images, batch 8: 100 iterations an epoch.
max_epochs = 5
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        eta_min_ratio=0.01,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(max_keep_ckpts=1, published_keys=['meta', 'state_dict']),
)
randomness = dict(seed=0)
