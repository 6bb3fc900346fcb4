# The student alone on BCCD blood cells: half of the teacher's depth, the same widths.
_base_ = [
    '../_base_/models/retinanet_small.py',
    '../_base_/datasets/bccd_detection.py',
    '../_base_/schedules/small_detection.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(backbone=dict(layers=(1, 1, 1, 1)), bbox_head=dict(num_classes=3))

max_epochs = 6
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
# AP50 of each class is what the demonstration is about.
val_evaluator = dict(classwise=True)
test_evaluator = val_evaluator
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=1, published_keys=['meta', 'state_dict']),
)
randomness = dict(seed=0)
