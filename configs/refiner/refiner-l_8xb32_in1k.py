_base_ = './refiner-s_8xb32_in1k.py'

model = dict(backbone=dict(arch='l', drop_path_rate=0.2), head=dict(in_channels=512))

# The shorter edge is resized to 224 / 1.13, and the image framed in black.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=198, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='NumpyToPIL'),
    dict(type='torchvision/CenterCrop', size=224),
    dict(type='PILToNumpy'),
    dict(type='PackInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
