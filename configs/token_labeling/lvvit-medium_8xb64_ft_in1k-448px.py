_base_ = './lvvit-medium_8xb64_ft_in1k-384px.py'

model = dict(backbone=dict(img_size=448))
data_preprocessor = dict(label_size=28)

train_pipeline = _base_.train_pipeline
train_pipeline[4]['scale'] = 448
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # crop ratio 1
    dict(type='ResizeEdge', scale=448, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=448),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
