# Learning rate (1e-3) and stochastic depth are not in the paper's table: from memory of the code.
_base_ = './volo-d2_8xb128_in1k.py'

model = dict(backbone=dict(arch='d4', drop_path_rate=0.5), head=dict(in_channels=768))

test_pipeline = [
    dict(type='LoadImageFromFile'),
    # crop ratio 1.15: the whole image, and a black border
    dict(type='NumpyToPIL', to_rgb=True),
    dict(type='torchvision/Resize', size=194, interpolation='bicubic'),
    dict(type='torchvision/CenterCrop', size=224),
    dict(type='PILToNumpy', to_bgr=True),
    dict(type='PackInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
