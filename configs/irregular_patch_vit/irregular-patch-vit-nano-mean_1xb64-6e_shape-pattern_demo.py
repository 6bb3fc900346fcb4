_base_ = './irregular-patch-vit-nano_1xb64-6e_shape-pattern_demo.py'

# The mean of the tokens instead of the adaptive fusion.
model = dict(backbone=dict(fusion='mean'))
