_base_ = './lvvit-small_8xb128_in1k.py'

model = dict(backbone=dict(arch='m', drop_path_rate=0.2), head=dict(in_channels=512))

test_pipeline = [
    dict(type='LoadImageFromFile'),
    # crop ratio 1
    dict(type='ResizeEdge', scale=224, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
