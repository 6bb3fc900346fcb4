_base_ = './irregular-patch-vit-nano_1xb64-15e_shape-pattern_demo.py'

# The convolutional stem alone: 6x6 patches of one size and a class token.
model = dict(
    backbone=dict(arch=dict(num_layers=2), branch_strides=(1,), fusion='cls_token'),
)
