_base_ = './lvvit-medium_8xb128_in1k.py'

model = dict(backbone=dict(arch='l', drop_path_rate=0.3), head=dict(in_channels=768))

# three operations of RandAugment instead of two
train_pipeline = _base_.train_pipeline
train_pipeline[3]['num_policies'] = 3
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(
        type='LinearLR', start_factor=1e-6 / 1e-3, by_epoch=True, end=5, convert_to_iter_based=True
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=5,
        end=300,
        convert_to_iter_based=True,
    ),
]
