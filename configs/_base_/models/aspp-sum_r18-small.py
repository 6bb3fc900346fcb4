# A ResNet-18 a quarter as wide, for training from scratch on two CPU cores.
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='mmextra.DomainPairDataPreprocessor',
        mean=[0.0, 0.0, 0.0],
        std=[255.0, 255.0, 255.0],
        bgr_to_rgb=True,
        size=(64, 64),
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        stem_channels=16,
        base_channels=16,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        contract_dilation=True,
        norm_cfg=dict(type='BN', requires_grad=True),
    ),
    decode_head=dict(
        type='mmextra.ASPPSumHead',
        in_channels=128,
        in_index=3,
        channels=32,
        num_classes=5,
        dilations=(1, 2, 3, 4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
