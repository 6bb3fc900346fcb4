# The teacher of R32 on CIFAR-100.
_base_ = 'resnet56_1xb128-240e_cifar100.py'

model = dict(backbone=dict(depth=110))
