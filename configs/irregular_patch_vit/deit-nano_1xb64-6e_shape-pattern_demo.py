_base_ = './irregular-patch-vit-nano_1xb64-6e_shape-pattern_demo.py'

# DeiT: patches of 16x16 pixels and a class token.
model = dict(
    backbone=dict(
        _delete_=True,
        type='VisionTransformer',
        arch=dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384),
        img_size=96,
        patch_size=16,
    ),
    head=dict(type='VisionTransformerClsHead', in_channels=96),
)
