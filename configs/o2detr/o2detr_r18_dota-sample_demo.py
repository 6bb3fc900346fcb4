# Overfits the patches of two DOTA images: `python tools/o2detr_demo.py --data dota-sample`.
# It is tested on what it was trained on, which shows that real annotations can be fitted, and no more.
_base_ = [
    'mmdet::_base_/default_runtime.py',
    '../_base_/models/o2detr_small.py',
    '../_base_/datasets/dota_sample.py',
]

model = dict(
    num_queries=100,  # a patch holds up to 66 ships
    with_box_refine=True,
    bbox_head=dict(num_classes=15),
    test_cfg=dict(max_per_img=100),
)

# No flips: it is to fit these patches, not others.
train_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))

# 10 iterations an epoch.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100, val_interval=25)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=50),
    dict(type='MultiStepLR', by_epoch=True, milestones=[85], gamma=0.1),
]
auto_scale_lr = dict(enable=False, base_batch_size=4)
default_hooks = dict(
    logger=dict(interval=5), checkpoint=dict(interval=100, published_keys=['meta', 'state_dict'])
)
visualizer = dict(type='mmextra.OrientedLocalVisualizer')
# `tools/test.py --tta`
tta_model = dict(
    type='mmextra.OrientedTTAModel',
    tta_cfg=dict(nms=dict(type='nms_rotated', iou_threshold=0.1), max_per_img=100),
)
