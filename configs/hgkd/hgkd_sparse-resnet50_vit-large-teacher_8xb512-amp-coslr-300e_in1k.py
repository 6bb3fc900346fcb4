# ResNet-50 from a ViT-L/16.
_base_ = 'hgkd_sparse-resnet50_vit-base-teacher_8xb512-amp-coslr-300e_in1k.py'

model = dict(
    teacher=dict(
        arch='large',
        init_cfg=dict(
            checkpoint='https://download.openmmlab.com/mmselfsup/1.x/mae/'
            'mae_vit-large-p16_8xb512-fp16-coslr-1600e_in1k/'
            'mae_vit-large-p16_8xb512-fp16-coslr-1600e_in1k_20220825-cc7e98c9.pth'
        ),
    )
)
