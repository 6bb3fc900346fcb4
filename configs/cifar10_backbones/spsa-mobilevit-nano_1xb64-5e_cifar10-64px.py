_base_ = 'deit-nano_1xb64-5e_cifar10-64px.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.SPSAMobileViT',
        arch=[
            ['mobilenetv2', 24, 1, 1, 2],
            ['mobilenetv2', 32, 2, 1, 2],
            ['mobilevit', 48, 2, 96, 192, 3, 2],
            ['mobilevit', 64, 1, 96, 192, 3, 2],
        ],
        stem_channels=16,
        last_exp_factor=2,
        out_indices=(3,),
        spsa=dict(num_heads=4, tau=1.0),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', in_channels=128),
)
