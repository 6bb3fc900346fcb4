# FCOS with distributions for box edges: the student, which is also the baseline.
_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center_1x_coco.py'

model = dict(
    bbox_head=dict(
        type='mmextra.FCOSDistHead',
        reg_max=16,
        center_sampling=True,  # as in the authors' head
        loss_bbox=dict(_delete_=True, type='GIoULoss', loss_weight=1.0),
    )
)
