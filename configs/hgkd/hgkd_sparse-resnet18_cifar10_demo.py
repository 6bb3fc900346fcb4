# The student of the demonstration: ResNet-18 with a quarter of its width and three stages, on the teacher's images.
_base_ = 'mae_vit-tiny_cifar10_demo.py'

model = dict(
    _delete_=True,
    type='mmextra.HGKD',
    backbone=dict(
        type='SparseResNet',
        depth=18,
        stem_channels=16,
        base_channels=16,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
        norm_cfg=dict(type='SparseBatchNorm2d'),
    ),
    teacher=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=96, num_layers=4, num_heads=4, feedforward_channels=384),
        img_size=48,
        patch_size=8,
        out_type='featmap',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/mae_vit-tiny_cifar10_demo/epoch_10.pth',
            prefix='backbone.',
        ),
    ),
    decoder=dict(
        width=32, sparse_norm_cfg=dict(type='SparseBatchNorm2d'), norm_cfg=dict(type='BN')
    ),
    mask_ratio=0.6,
    input_size=48,
    downsample_ratio=16,  # three stages: 3x3 cells, of which 4 stay visible
)
train_cfg = dict(max_epochs=4)
