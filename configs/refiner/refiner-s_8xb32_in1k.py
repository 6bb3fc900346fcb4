_base_ = [
    '../_base_/datasets/imagenet_bs32_half-mean_224.py',
    '../_base_/schedules/imagenet_bs256_adamw_310e.py',
    'mmpretrain::_base_/default_runtime.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmextra.RefinerViT', arch='s', drop_path_rate=0.1),
    head=dict(
        type='VisionTransformerClsHead',
        num_classes=1000,
        in_channels=384,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
# The cosine regulariser of the maps of the first 12 pairs of layers. Half of the pairs are a plain layer and the share
# layer after it, which hand on the same map.
custom_hooks = [
    dict(type='EMAHook', momentum=4e-5, priority='ABOVE_NORMAL'),
    dict(
        type='mmextra.AttnCosRegHook',
        loss=dict(type='mmextra.AttnCosRegLoss', loss_weight=0.1, num_pairs=12),
    ),
]
