_base_ = 'deit-nano_1xb64-5e_cifar10-64px.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.RefinerViT',
        arch=dict(embed_dims=72, num_layers=5, num_heads=3, feedforward_channels=216),
        img_size=64,
        patch_size=8,
    )
)
