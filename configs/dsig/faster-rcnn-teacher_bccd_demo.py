# The teacher on BCCD: twice the student's width, the same FPN, trained twice as long.
_base_ = 'faster-rcnn-plain_bccd_demo.py'

model = dict(backbone=dict(base_channels=32), neck=dict(in_channels=[32, 64, 128, 256]))

max_epochs = 12
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        eta_min_ratio=0.01,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
