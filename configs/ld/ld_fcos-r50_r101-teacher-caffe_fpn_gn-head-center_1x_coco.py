# FCOS R50 from R101 with the authors' FCOS weights: 0.25 for LD, 0.25 * 0.25 on the VLR, 10 for classes.
_base_ = 'fcos-dist_r50-caffe_fpn_gn-head-center_1x_coco.py'

custom_hooks = [
    dict(
        type='mmextra.LocalizationDistillationHook',
        teacher=dict(
            config='mmextra::ld/fcos-dist_r101-caffe_fpn_gn-head-center_1x_coco.py',
            checkpoint='work_dirs/fcos-dist_r101-caffe_fpn_gn-head-center_1x_coco/epoch_12.pth',
        ),
    )
]
