# ATSS R50 from R101 with the authors' ATSS weights: 0.25 for LD, 0.15 * 0.25 on the VLR, 10 for classes.
_base_ = 'atss-dist_r50_fpn_1x_coco.py'

custom_hooks = [
    dict(
        type='mmextra.LocalizationDistillationHook',
        teacher=dict(
            config='mmextra::ld/atss-dist_r101_fpn_1x_coco.py',
            checkpoint='work_dirs/atss-dist_r101_fpn_1x_coco/epoch_12.pth',
        ),
    )
]
