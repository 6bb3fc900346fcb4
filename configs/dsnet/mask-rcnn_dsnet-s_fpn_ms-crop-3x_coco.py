_base_ = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py'

pretrained = None
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.DSNet',
        arch='s',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.1,
        norm_eval=True,
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
