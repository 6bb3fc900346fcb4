# The ablation: as many layers, each with queries and keys of its own.
_base_ = './refiner-nano_1xb64-15e_shapes-patterns_demo.py'

model = dict(backbone=dict(share_pattern=[False] * 12))
