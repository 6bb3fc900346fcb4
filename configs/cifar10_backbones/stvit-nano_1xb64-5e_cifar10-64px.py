_base_ = 'deit-nano_1xb64-5e_cifar10-64px.py'

# Three layers on 64 tokens, the others on nine semantic tokens.
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.STViT',
        arch=dict(embed_dims=72, num_layers=6, num_heads=3, feedforward_channels=288),
        img_size=64,
        patch_size=8,
        base_layers=2,
        stgm_layers=2,
        num_semantic=3,
        pool='learned',
    )
)
