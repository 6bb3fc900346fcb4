# The teacher of the demonstration.
_base_ = 'resnet8-plain_cifar10_demo.py'

model = dict(
    backbone=dict(depth=8, stem_channels=16, base_channels=32),
    head=dict(in_channels=128),
)
