# Swin's settings: AdamW 1e-4, weight decay 0.05, not for norms; multi-scale training; 36 epochs, steps at 27 and 33.
_base_ = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py'

pretrained = None
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.ELSASwin',
        arch='tiny',
        group_width=4,
        drop_path_rate=0.2,  # of Swin-T; not published for this schedule
        out_indices=(0, 1, 2, 3),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
