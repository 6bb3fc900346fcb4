# DeepLab v2 in the form that DecoupleNet uses: ResNet-101 with output stride 8, dilated 3x3 convolutions summed.
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='mmextra.DomainPairDataPreprocessor',
        # RGB in [0, 1] and no more, although the weights are ImageNet's.
        mean=[0.0, 0.0, 0.0],
        std=[255.0, 255.0, 255.0],
        bgr_to_rgb=True,
        size=(512, 896),
    ),
    backbone=dict(
        type='ResNet',
        depth=101,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        contract_dilation=True,
        style='pytorch',
        norm_cfg=norm_cfg,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101'),
    ),
    decode_head=dict(
        type='mmextra.ASPPSumHead',
        in_channels=2048,
        in_index=3,
        channels=128,
        num_classes=19,
        dilations=(6, 12, 18, 24),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
