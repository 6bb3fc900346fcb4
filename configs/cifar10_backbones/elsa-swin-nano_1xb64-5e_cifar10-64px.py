_base_ = 'deit-nano_1xb64-5e_cifar10-64px.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.ELSASwin',
        arch=dict(embed_dims=16, depths=[1, 1, 3, 1], num_heads=[1, 2, 4, 8]),
        img_size=64,
        window_size=4,
        elsa_kernel=5,
        group_width=4,
        drop_path_rate=0.0,
        pad_small_map=True,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', in_channels=128),
)
