# The teacher on BCCD: ResNet-18, trained twice as long as the student.
_base_ = 'retinanet-plain_bccd_demo.py'

model = dict(backbone=dict(layers=(2, 2, 2, 2)))

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
