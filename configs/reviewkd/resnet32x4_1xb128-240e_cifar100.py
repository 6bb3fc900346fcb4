# The teacher of R8x4 on CIFAR-100: four times the width.
_base_ = 'resnet56_1xb128-240e_cifar100.py'

model = dict(
    backbone=dict(depth=32, stem_channels=32, base_channels=64),
    head=dict(in_channels=256),
)
