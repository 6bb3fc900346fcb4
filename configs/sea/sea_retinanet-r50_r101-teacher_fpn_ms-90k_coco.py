# The 1x schedule: 90k iterations of 16 images.
_base_ = 'sea_retinanet-r50_r101-teacher_fpn_ms-180k_coco.py'

max_iter = 90000
train_cfg = dict(max_iters=max_iter)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(
        type='MultiStepLR',
        begin=0,
        end=max_iter,
        by_epoch=False,
        milestones=[60000, 80000],
        gamma=0.1,
    ),
]
