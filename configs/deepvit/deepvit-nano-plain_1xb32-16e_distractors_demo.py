# The ablation: the same layers, none of which mixes its maps.
_base_ = './deepvit-nano_1xb32-16e_distractors_demo.py'

model = dict(backbone=dict(arch=dict(transform_mask=[False] * 16)))
