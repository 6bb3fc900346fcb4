# CIFAR-100, R20 from R56: 69.06 -> 71.89 top-1.
_base_ = 'resnet56_1xb128-240e_cifar100.py'

model = dict(backbone=dict(depth=20))

custom_hooks = [
    dict(
        type='mmextra.ReviewKDHook',
        teacher=dict(
            config='mmextra::reviewkd/resnet56_1xb128-240e_cifar100.py',
            checkpoint='work_dirs/resnet56_1xb128-240e_cifar100/epoch_240.pth',
            mode='train',  # the authors' CIFAR code never calls eval() on the teacher
        ),
        student_layers=['backbone.layer1', 'backbone.layer2', 'backbone.layer3', 'neck'],
        student_channels=[16, 32, 64, 64],
        teacher_channels=[16, 32, 64, 64],
        mid_channels=64,
        pre_relu=dict(student=False, teacher=True),
        warmup=20,  # epochs over which the loss grows from 0
        loss_weight=0.6,
    )
]
