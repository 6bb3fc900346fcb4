# ImageNet-1k, R18 from R34: 69.75 -> 71.61 top-1. The schedule is that of the base: 100 epochs, /10 at 30, 60, 90.
_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'

custom_hooks = [
    dict(
        type='mmextra.ReviewKDHook',
        teacher=dict(
            config='mmpretrain::resnet/resnet34_8xb32_in1k.py',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/resnet/'
            'resnet34_8xb32_in1k_20210831-f257d4e6.pth',
        ),
        student_layers=[
            'backbone.layer1',
            'backbone.layer2',
            'backbone.layer3',
            'backbone.layer4',
            'neck',
        ],
        student_channels=[64, 128, 256, 512, 512],
        teacher_channels=[64, 128, 256, 512, 512],
        mid_channels=512,
        pre_relu=True,  # features before the last ReLU of each stage
        loss_weight=1.0,
    )
]
