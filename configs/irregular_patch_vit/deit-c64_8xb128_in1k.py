# DeiT shrunk to 64 channels, to hold the irregular patches against: the same data and schedule.
_base_ = './irregular-patch-vit-m_8xb128_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='VisionTransformer',
        arch=dict(embed_dims=64, num_layers=12, num_heads=1, feedforward_channels=256),
        img_size=224,
        patch_size=16,
    ),
    head=dict(type='VisionTransformerClsHead', in_channels=64),
)
