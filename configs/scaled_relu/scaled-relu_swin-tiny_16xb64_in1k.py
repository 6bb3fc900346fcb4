_base_ = 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py'

# Patch size 4: the stem halves the image once, the projection once more.
model = dict(backbone=dict(patch_cfg=dict(conv_type='mmextra.ScaledReLUConvStem')))
