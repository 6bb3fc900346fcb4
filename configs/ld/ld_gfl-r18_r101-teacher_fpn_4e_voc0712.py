# Pascal VOC: GFL R18, 51.8 -> 53.0 (Main LD) -> 54.0 AP with LD and class distillation on the VLR too.
_base_ = 'gfl_r101_fpn_4e_voc0712.py'

model = dict(
    backbone=dict(depth=18, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)

custom_hooks = [
    dict(
        type='mmextra.LocalizationDistillationHook',
        teacher=dict(
            config='mmextra::ld/gfl_r101_fpn_4e_voc0712.py',
            checkpoint='work_dirs/gfl_r101_fpn_4e_voc0712/epoch_4.pth',
        ),
        ld=dict(weight=0.25, T=10),
        vlr=dict(weight=0.25, T=10),
        kd=None,
        kd_vlr=dict(weight=10, T=2),
    )
]
