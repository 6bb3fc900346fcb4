# RetinaNet with distributions for box edges: the teacher.
_base_ = 'mmdet::retinanet/retinanet_r101_fpn_2x_coco.py'

model = dict(
    bbox_head=dict(
        type='mmextra.RetinaDistHead',
        reg_max=16,
        reg_decoded_bbox=True,
        bbox_coder=dict(_delete_=True, type='mmextra.CenterDistanceBBoxCoder'),
        loss_bbox=dict(_delete_=True, type='GIoULoss', loss_weight=2.0),
    )
)
