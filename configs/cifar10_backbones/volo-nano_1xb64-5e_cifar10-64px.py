_base_ = 'deit-nano_1xb64-5e_cifar10-64px.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.VOLO',
        arch=dict(
            layers=(1, 1, 2, 1),
            embed_dims=(40, 80, 80, 80),
            num_heads=(2, 4, 4, 4),
            stem_channels=32,
        ),
        img_size=64,
        out_type='cls_token',
    ),
    head=dict(in_channels=80),
)
