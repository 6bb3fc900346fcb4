# The student alone on BCCD blood cells.
_base_ = [
    '../_base_/models/gfl_small.py',
    '../_base_/datasets/bccd_detection.py',
    '../_base_/schedules/small_detection.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(bbox_head=dict(num_classes=3))

max_epochs = 6
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
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
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=1, published_keys=['meta', 'state_dict']),
)
randomness = dict(seed=0)
