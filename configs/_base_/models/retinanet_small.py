# A small RetinaNet trained from scratch: ResNet-18 with half of its width (timm's, whose depth is free too),
# FPN and head of 64 channels.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.TIMMBackbone',
        model_name='resnet18',
        features_only=True,
        pretrained=False,
        out_indices=(1, 2, 3, 4),
        channels=(32, 64, 128, 256),
        layers=(2, 2, 2, 2),
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    bbox_head=dict(
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        anchor_generator=dict(octave_base_scale=2),
    ),
)
