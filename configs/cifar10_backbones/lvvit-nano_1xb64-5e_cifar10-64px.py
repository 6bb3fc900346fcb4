_base_ = 'deit-nano_1xb64-5e_cifar10-64px.py'

# The network alone: CIFAR-10 has no labels of tokens.
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.LVViT',
        arch=dict(embed_dims=80, num_layers=5, num_heads=4, stem_channels=32),
        img_size=64,
        patch_size=8,
        out_type='cls_token',
    ),
    head=dict(in_channels=80),
)
