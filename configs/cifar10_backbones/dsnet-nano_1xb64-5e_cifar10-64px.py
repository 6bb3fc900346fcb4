_base_ = 'deit-nano_1xb64-5e_cifar10-64px.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.DSNet',
        arch=dict(
            embed_dims=(24, 48, 64, 80), depths=(1, 1, 3, 2), num_heads=(1, 2, 4, 5), mlp_ratio=4.0
        ),
        attn_drop_rate=0.0,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', in_channels=80),
)
