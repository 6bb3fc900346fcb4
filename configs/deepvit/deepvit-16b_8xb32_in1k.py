_base_ = [
    '../_base_/datasets/imagenet_bs32_half-mean_224.py',
    '../_base_/schedules/imagenet_bs256_adamw_310e.py',
    'mmpretrain::_base_/default_runtime.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmextra.DeepViT', arch='16b', drop_path_rate=0.2),
    head=dict(
        type='VisionTransformerClsHead',
        num_classes=1000,
        in_channels=384,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
