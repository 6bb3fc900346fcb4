_base_ = './irregular-patch-vit-nano_1xb64-6e_shape-pattern_demo.py'

# The convolutional stem alone: 6x6 patches of one size and a class token.
model = dict(
    backbone=dict(
        arch=dict(embed_dims=96, num_layers=3, num_heads=3),
        branch_strides=(1,),
        fusion='cls_token',
    ),
    head=dict(in_channels=96),
)
