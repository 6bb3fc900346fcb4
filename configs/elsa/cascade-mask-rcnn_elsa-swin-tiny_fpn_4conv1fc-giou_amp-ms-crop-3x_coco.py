# Swin's Cascade Mask R-CNN: 4conv1fc heads with GIoU loss, multi-scale training, 36 epochs, steps at 27 and 33.
_base_ = (
    'mmdet::convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py'
)

checkpoint_file = None
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.ELSASwin',
        arch='tiny',
        group_width=4,
        drop_path_rate=0.2,  # not published for Cascade R-CNN
        out_indices=(0, 1, 2, 3),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={
            'relative_position_bias_table': dict(decay_mult=0.0),
            'norm': dict(decay_mult=0.0),
        }
    ),
)
