_base_ = 'mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py'

pretrained = None
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.ELSASwin',
        arch='tiny',
        group_width=4,
        drop_path_rate=0.1,
        out_indices=(1, 2, 3),
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'relative_position_bias_table': dict(decay_mult=0.0),
            'norm': dict(decay_mult=0.0),
        }
    ),
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
