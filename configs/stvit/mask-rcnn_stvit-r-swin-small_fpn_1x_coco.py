# AdamW 1e-4, weight decay 0.05, not for norms: as the host's Swin.
_base_ = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'

pretrained = None
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.STViTRSwin',
        arch='small',
        variant='dense',
        drop_path_rate=0.2,
        out_indices=(0, 1, 2, 3),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
