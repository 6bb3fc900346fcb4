_base_ = './deepvit-16b_8xb32_in1k.py'

model = dict(backbone=dict(arch='s'), head=dict(in_channels=396))
