# The ablation: as many layers, each with queries and keys of its own.
_base_ = './refiner-nano_1xb32-15e_distractors_demo.py'

model = dict(backbone=dict(share_pattern=[False] * 12))
