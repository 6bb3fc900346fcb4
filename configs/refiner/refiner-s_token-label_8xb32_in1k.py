_base_ = './refiner-s_8xb32_in1k.py'

# Token labeling, mixed tokens instead of mixed images, and more stochastic depth. The label maps are those of
# configs/token_labeling. The head adds the cosine regulariser.
model = dict(
    backbone=dict(drop_path_rate=0.2, mix_token=True, out_type='dense', cos_reg_maps=12),
    head=dict(
        _delete_=True,
        type='mmextra.TokenLabelClsHead',
        num_classes=1000,
        in_channels=384,
        loss=dict(type='mmextra.TokenLabelLoss', dense_weight=0.5),
        aux_losses=[dict(type='mmextra.AttnCosRegLoss', loss_weight=0.1, num_pairs=12)],
    ),
    train_cfg=None,
)
data_preprocessor = dict(
    type='mmextra.TokenLabelDataPreprocessor',
    label_size=14,  # the grid of tokens
    smoothing=0.1,
)

# Flips, RandAugment and crops act on the label map as well, and the crop comes last.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmextra.LoadTokenLabel', data_root='data/label_top5_train_nfnet'),
    dict(type='mmextra.TokenLabelRandomFlip', prob=0.5),
    dict(
        type='mmextra.TokenLabelRandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[128] * 3, interpolation='bicubic'),
    ),
    dict(
        type='mmextra.TokenLabelRandomResizedCrop',
        scale=224,
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(
        type='RandomErasing',
        erase_prob=0.25,
        mode='rand',
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=[127.5] * 3,
        fill_std=[127.5] * 3,
    ),
    dict(type='PackInputs', algorithm_keys=('token_label', 'crop_coords')),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
custom_hooks = [dict(type='EMAHook', momentum=4e-5, priority='ABOVE_NORMAL')]
