# Table 1 of the paper: GFL R18, 1x, with Main KD + LD and VLR LD; 35.8 -> 37.5 box AP.
_base_ = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'

model = dict(
    backbone=dict(depth=18, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)

custom_hooks = [
    dict(
        type='mmextra.LocalizationDistillationHook',
        teacher=dict(
            config='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/gfl/'
            'gfl_r101_fpn_mstrain_2x_coco/'
            'gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth',
        ),
        ld=dict(weight=0.25, T=10),
        vlr=dict(weight=0.25, T=10),
        kd=dict(weight=10, T=2),
    )
]

# The terms are sums over a device's images: published with 2 GPUs x 3 images and lr 0.01 * 6 / 16.
train_dataloader = dict(batch_size=3)
optim_wrapper = dict(optimizer=dict(lr=0.00375))
auto_scale_lr = dict(enable=False, base_batch_size=6)
