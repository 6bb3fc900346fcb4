# DeiT shrunk to 128 channels, to hold the irregular patches against: the same data and schedule.
_base_ = './irregular-patch-vit-m_8xb128_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='VisionTransformer',
        arch=dict(embed_dims=128, num_layers=12, num_heads=2, feedforward_channels=512),
        img_size=224,
        patch_size=16,
    ),
    head=dict(type='VisionTransformerClsHead', in_channels=128),
)
