# ImageNet-1k, MobileNet (V1) from R50: 68.87 -> 72.56 top-1. The network is timm's, with the ReLU of the original.
_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True, type='TIMMBackbone', model_name='mobilenetv1_100', act_layer='relu'
    ),
    head=dict(in_channels=1024),
)

custom_hooks = [
    dict(
        type='mmextra.ReviewKDHook',
        teacher=dict(
            config='mmpretrain::resnet/resnet50_8xb32_in1k.py',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/resnet/'
            'resnet50_8xb32_in1k_20210831-ea4938fc.pth',
        ),
        # The inputs of the last ReLUs at strides 4, 8, 16 and 32.
        student_layers=[
            'backbone.timm_model.blocks.1.1.bn2.act:input',
            'backbone.timm_model.blocks.2.1.bn2.act:input',
            'backbone.timm_model.blocks.3.5.bn2.act:input',
            'backbone.timm_model.blocks.4.1.bn2.act:input',
            'neck',
        ],
        teacher_layers=[
            'backbone.layer1',
            'backbone.layer2',
            'backbone.layer3',
            'backbone.layer4',
            'neck',
        ],
        student_channels=[128, 256, 512, 1024, 1024],
        teacher_channels=[256, 512, 1024, 2048, 2048],
        mid_channels=256,
        pre_relu=True,
        loss_weight=8.0,
    )
]
