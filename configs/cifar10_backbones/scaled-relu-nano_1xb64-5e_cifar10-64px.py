_base_ = 'deit-nano_1xb64-5e_cifar10-64px.py'

# The stem has as many parameters as the two layers left out.
model = dict(
    backbone=dict(arch=dict(num_layers=4), patch_cfg=dict(conv_type='mmextra.ScaledReLUConvStem'))
)
