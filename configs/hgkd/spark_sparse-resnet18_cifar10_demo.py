# What H-GKD has to beat: the same student and steps with SparK, which predicts pixels.
_base_ = 'mae_vit-tiny_cifar10_demo.py'

model = dict(
    _delete_=True,
    type='SparK',
    input_size=48,
    downsample_raito=16,
    mask_ratio=0.6,
    enc_dec_norm_cfg=dict(type='SparseBatchNorm2d'),
    enc_dec_norm_dim=64,
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
    neck=dict(
        type='SparKLightDecoder', feature_dim=32, upsample_ratio=16, norm_cfg=dict(type='BN')
    ),
    head=dict(
        type='SparKPretrainHead',
        patch_size=16,
        loss=dict(type='PixelReconstructionLoss', criterion='L2'),
    ),
)
train_cfg = dict(max_epochs=4)
