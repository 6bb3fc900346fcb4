_base_ = './scaled-relu_deit-small_4xb256_in1k.py'

# The stem of TransReID-SSL: IBN after the first two convolutions.
model = dict(backbone=dict(patch_cfg=dict(conv_type='mmextra.ScaledReLUConvStemIBN')))
