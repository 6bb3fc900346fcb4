# The ablation: convolutions and batch norm, no ReLU.
_base_ = './scaled-relu_vit-nano_1xb32-8e_distractors_demo.py'

model = dict(backbone=dict(patch_cfg=dict(conv_type='mmextra.ConvBNStem')))
