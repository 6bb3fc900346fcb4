# CIFAR-100, R8x4 from R32x4: 72.50 -> 75.63 top-1.
_base_ = 'reviewkd_resnet20_resnet56-teacher_1xb128-240e_cifar100.py'

model = dict(
    backbone=dict(depth=8, stem_channels=32, base_channels=64),
    head=dict(in_channels=256),
)

custom_hooks = _base_.custom_hooks
custom_hooks[0].loss_weight = 5.0
custom_hooks[0].teacher.config = 'mmextra::reviewkd/resnet32x4_1xb128-240e_cifar100.py'
custom_hooks[0].teacher.checkpoint = 'work_dirs/resnet32x4_1xb128-240e_cifar100/epoch_240.pth'
custom_hooks[0].student_channels = [64, 128, 256, 256]
custom_hooks[0].teacher_channels = [64, 128, 256, 256]
custom_hooks[0].mid_channels = 256
