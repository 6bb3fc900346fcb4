# The pre-trained ResNet-50 in a stock segmentor, in place of the ResNetV1c there, whose stem is another.
_base_ = 'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py'

model = dict(
    pretrained=None,
    backbone=dict(
        type='ResNet',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/hgkd_sparse-resnet50_vit-base-teacher_8xb512-amp-coslr-300e_in1k/'
            'epoch_300.pth',
            prefix='backbone.',
        ),
    ),
)
