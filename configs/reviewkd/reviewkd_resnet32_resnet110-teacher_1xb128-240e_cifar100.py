# CIFAR-100, R32 from R110.
_base_ = 'reviewkd_resnet20_resnet56-teacher_1xb128-240e_cifar100.py'

model = dict(backbone=dict(depth=32))

custom_hooks = _base_.custom_hooks
custom_hooks[0].loss_weight = 1.0
custom_hooks[0].teacher.config = 'mmextra::reviewkd/resnet110_1xb128-240e_cifar100.py'
custom_hooks[0].teacher.checkpoint = 'work_dirs/resnet110_1xb128-240e_cifar100/epoch_240.pth'
