# RetinaNet R50 from R101 with the authors' RetinaNet weights: 5 for LD, 0.03 * 5 on the VLR, 10 at T=8 for classes.
_base_ = 'retinanet-dist_r50_fpn_1x_coco.py'

custom_hooks = [
    dict(
        type='mmextra.LocalizationDistillationHook',
        teacher=dict(
            config='mmextra::ld/retinanet-dist_r101_fpn_2x_coco.py',
            checkpoint='work_dirs/retinanet-dist_r101_fpn_2x_coco/epoch_24.pth',
        ),
        per_edge=False,  # one softmax over the four edges, as published
    )
]
