_base_ = './lvvit-small_8xb64_ft_in1k-384px.py'

load_from = 'work_dirs/lvvit-medium_8xb128_in1k/epoch_310.pth'
model = dict(backbone=dict(arch='m', drop_path_rate=0.2), head=dict(in_channels=512))

test_pipeline = [
    dict(type='LoadImageFromFile'),
    # crop ratio 1
    dict(type='ResizeEdge', scale=384, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=384),
    dict(type='PackInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
