# Drawn rectangles of any angle: `python tools/o2detr_demo.py --data rectangles`. About 3 minutes on one core.
_base_ = [
    'mmdet::_base_/default_runtime.py',
    '../_base_/models/o2detr_small.py',
    '../_base_/datasets/rotated_rectangles.py',
]

# 38 iterations an epoch; five times the published rate, for a network of 64 channels from scratch.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=15, val_interval=5)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    paramwise_cfg=dict(
        custom_keys=dict(sampling_offsets=dict(lr_mult=0.1), reference_points=dict(lr_mult=0.1))
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=50),
    dict(type='MultiStepLR', by_epoch=True, milestones=[12], gamma=0.1),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=15, published_keys=['meta', 'state_dict'])
)
visualizer = dict(type='mmextra.OrientedLocalVisualizer')
# `tools/test.py --tta`
tta_model = dict(
    type='mmextra.OrientedTTAModel',
    tta_cfg=dict(nms=dict(type='nms_rotated', iou_threshold=0.1), max_per_img=20),
)
