# The student alone on BCCD blood cells: ResNet-18 with a quarter of its width, FPN 64.
_base_ = [
    '../_base_/models/faster_rcnn_small.py',
    '../_base_/datasets/bccd_detection.py',
    '../_base_/schedules/small_detection.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))

max_epochs = 6
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=1, published_keys=['meta', 'state_dict']),
)
randomness = dict(seed=0)
