_base_ = 'deit-nano_1xb64-5e_cifar10-64px.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.IrregularPatchViT',
        arch=dict(embed_dims=72, num_layers=4, num_heads=3, stem_channels=(16, 24, 32, 48)),
        img_size=64,
    ),
    head=dict(type='LinearClsHead'),
)
