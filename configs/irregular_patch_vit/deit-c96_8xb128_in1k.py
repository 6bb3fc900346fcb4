# DeiT shrunk to 96 channels, to hold the irregular patches against: the same data and schedule.
_base_ = './irregular-patch-vit-m_8xb128_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='VisionTransformer',
        arch=dict(embed_dims=96, num_layers=12, num_heads=3, feedforward_channels=384),
        img_size=224,
        patch_size=16,
    ),
    head=dict(type='VisionTransformerClsHead', in_channels=96),
)
