# A small O2DETR trained from scratch: ResNet-18 with a quarter of its width, 64 channels, 3 + 3 layers.
model = dict(
    type='mmextra.O2DETR',
    num_queries=20,
    num_feature_levels=4,
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=1,
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=16,
        out_indices=(1, 2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
    ),
    neck=dict(
        type='ChannelMapper',
        in_channels=[32, 64, 128],
        kernel_size=1,
        out_channels=64,
        act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=8),
        num_outs=4,
    ),
    encoder=dict(
        num_layers=3,
        # Without dropout: a run this short does not overfit.
        layer_cfg=dict(embed_dims=64, feedforward_channels=256, dropout=0.0),
    ),
    decoder=dict(
        num_layers=3,
        return_intermediate=True,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=64, num_heads=8, dropout=0.0, batch_first=True),
            cross_attn_cfg=dict(embed_dims=64, num_heads=8, dropout=0.0, batch_first=True),
            ffn_cfg=dict(embed_dims=64, feedforward_channels=256, ffn_drop=0.0),
        ),
        post_norm_cfg=None,
    ),
    positional_encoding=dict(num_feats=32, normalize=True, offset=-0.5),
    bbox_head=dict(
        type='mmextra.O2DETRHead',
        num_classes=2,
        embed_dims=64,
        sync_cls_avg_factor=True,
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='mmextra.OrientedIoULoss', loss_weight=2.0),
    ),
    train_cfg=dict(
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='FocalLossCost', weight=2.0),
                dict(type='mmextra.OrientedL1Cost', weight=5.0),
                dict(type='mmextra.OrientedIoUCost', weight=2.0),
            ],
        )
    ),
    test_cfg=dict(max_per_img=20),
)
