# One detector for everyday objects (80 categories) and blood cells (3).
_base_ = [
    '../_base_/models/dino_small.py',
    '../_base_/datasets/coco128_bccd_detection.py',
    '../_base_/schedules/small_detection.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    type='mmextra.METR',
    label_spaces=dict(coco='mmdet.CocoDataset', bccd=('RBC', 'WBC', 'Platelets')),
    embeddings=dict(source='characters'),  # needs no file
    num_queries=120,  # 6 for each of 20 categories of COCO, 40 for each of the 3 kinds of cells
    num_categories=20,
    cem=dict(feedforward_channels=256),
    bbox_head=dict(type='mmextra.METRHead'),
    train_cfg=dict(assigner=dict(type='mmextra.GroupHungarianAssigner')),
    test_cfg=dict(max_per_img=100),
)

max_epochs = 6
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=1e-4), clip_grad=dict(max_norm=0.1, norm_type=2)
)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=1, published_keys=['meta', 'state_dict']),
)
custom_hooks = [dict(type='mmextra.LabelSpaceCheckHook')]
randomness = dict(seed=0)
