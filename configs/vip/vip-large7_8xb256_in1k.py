_base_ = './vip-small7_8xb256_in1k.py'

# The stochastic depth is not in the paper's tables: from memory of the code.
model = dict(backbone=dict(arch='l7', drop_path_rate=0.3), head=dict(in_channels=512))

test_pipeline = [
    dict(type='LoadImageFromFile'),
    # crop ratio 0.875
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
