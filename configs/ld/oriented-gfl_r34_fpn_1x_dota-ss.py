# The teacher of the oriented students: GFL R34 with five distributions a box.
_base_ = [
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/models/oriented_gfl_r50_fpn.py',
    '../_base_/datasets/dota.py',
]

model = dict(
    backbone=dict(depth=34, init_cfg=dict(checkpoint='torchvision://resnet34')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)

# The 1x schedule of mmrotate, on one device with two images.
optim_wrapper = dict(optimizer=dict(lr=0.0025), clip_grad=dict(max_norm=35, norm_type=2))
auto_scale_lr = dict(enable=False, base_batch_size=2)
visualizer = dict(type='mmextra.OrientedLocalVisualizer')
test_evaluator = dict(outfile_prefix='work_dirs/oriented-gfl_r34_fpn_1x_dota-ss/Task1')
