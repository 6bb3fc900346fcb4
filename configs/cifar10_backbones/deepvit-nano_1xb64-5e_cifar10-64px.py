_base_ = 'deit-nano_1xb64-5e_cifar10-64px.py'

# As many layers and channels as DeiT, re-attention in all of them.
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.DeepViT',
        arch=dict(
            embed_dims=72,
            num_layers=6,
            num_heads=3,
            feedforward_channels=288,
            transform_mask=[True] * 6,
        ),
        img_size=64,
        patch_size=8,
    )
)
