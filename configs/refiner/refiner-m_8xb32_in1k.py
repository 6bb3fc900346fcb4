_base_ = './refiner-s_8xb32_in1k.py'

model = dict(backbone=dict(arch='m', drop_path_rate=0.2), head=dict(in_channels=420))

# 1.0 of the shorter edge.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=224, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
