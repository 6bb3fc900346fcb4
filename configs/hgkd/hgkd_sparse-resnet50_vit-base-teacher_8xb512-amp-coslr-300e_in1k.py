# ResNet-50 from a ViT-B/16 pre-trained with MAE. Optimizer and images as in SparK; 300 epochs in place of its 1600.
_base_ = 'mmpretrain::spark/spark_sparse-resnet50_8xb512-amp-coslr-800e_in1k.py'

model = dict(
    _delete_=True,
    type='mmextra.HGKD',
    backbone=dict(type='SparseResNet', depth=50, out_indices=(0, 1, 2, 3), drop_path_rate=0.05),
    teacher=dict(
        type='VisionTransformer',
        arch='base',
        img_size=224,
        patch_size=16,
        out_type='featmap',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://download.openmmlab.com/mmselfsup/1.x/mae/'
            'mae_vit-base-p16_8xb512-fp16-coslr-1600e_in1k/'
            'mae_vit-base-p16_8xb512-fp16-coslr-1600e_in1k_20220825-f7569ca2.pth',
            prefix='backbone.',
        ),
    ),
    decoder=dict(width=512),
    mask_ratio=0.6,  # 20 of 49 cells stay visible
    teacher_view='full',
    masked_weight=1.0,
    visible_weight=1.0,
    input_size=224,
    downsample_ratio=32,
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='RandomResizedCrop',
        scale=224,
        crop_ratio_range=(0.67, 1.0),
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

# 2e-4 for 256 images, batch 4096; weight decay from 0.04 to 0.2, gradients clipped at 5.
optim_wrapper = dict(optimizer=dict(lr=2e-4 * 4096 / 256))
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-4,
        by_epoch=True,
        begin=0,
        end=40,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        T_max=260,
        by_epoch=True,
        begin=40,
        end=300,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingWeightDecay',
        eta_min=0.2,
        T_max=300,
        by_epoch=True,
        begin=0,
        end=300,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=300)
auto_scale_lr = dict(enable=False, base_batch_size=4096)
