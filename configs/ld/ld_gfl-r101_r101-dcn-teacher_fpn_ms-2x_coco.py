# GFL R101, 2x with scales 480-800, from a teacher with deformable convolutions; 44.6 -> 45.4 box AP.
_base_ = 'mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py'

custom_hooks = [
    dict(
        type='mmextra.LocalizationDistillationHook',
        teacher=dict(
            config='mmdet::gfl/gfl_r101-dconv-c3-c5_fpn_ms-2x_coco.py',
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/gfl/'
            'gfl_r101_fpn_dconv_c3-c5_mstrain_2x_coco/'
            'gfl_r101_fpn_dconv_c3-c5_mstrain_2x_coco_20200630_102002-134b07df.pth',
        ),
        ld=dict(weight=0.25, T=10),
        vlr=dict(weight=0.25, T=10),
        kd=dict(weight=10, T=2),
    )
]

train_dataloader = dict(batch_size=3)
optim_wrapper = dict(optimizer=dict(lr=0.00375))
auto_scale_lr = dict(enable=False, base_batch_size=6)
