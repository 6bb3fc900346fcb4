# The teacher: twice the student's width.
_base_ = 'gfl-plain_shapes_demo.py'

model = dict(backbone=dict(base_channels=32), neck=dict(in_channels=[64, 128, 256]))
