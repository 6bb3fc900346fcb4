# The student of resnet8-plain_cifar10_demo.py, distilled: one hook more, nothing else.
_base_ = 'resnet8-plain_cifar10_demo.py'

custom_hooks = [
    dict(
        type='mmextra.ReviewKDHook',
        teacher=dict(
            config='mmextra::reviewkd/resnet8x4-teacher_cifar10_demo.py',
            checkpoint='work_dirs/resnet8x4-teacher_cifar10_demo/epoch_15.pth',
        ),
        student_layers=['backbone.layer1', 'backbone.layer2', 'backbone.layer3', 'neck'],
        pre_relu=dict(student=False, teacher=True),
        warmup=3,
        loss_weight=5.0,
    )
]
