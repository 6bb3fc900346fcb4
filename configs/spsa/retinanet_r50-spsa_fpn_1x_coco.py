_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

# After the 3x3 convolutions of the last two stages. There are no parameters more: ImageNet weights load as they are.
model = dict(
    backbone=dict(
        plugins=[
            dict(
                cfg=dict(type='mmextra.SPSAPlugin', num_heads=8, tau=1.0),
                stages=(False, False, True, True),
                position='after_conv2',
            )
        ]
    )
)
