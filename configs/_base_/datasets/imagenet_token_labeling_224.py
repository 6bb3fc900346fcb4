# ImageNet with a label map for every training image (data/label_top5_train_nfnet, one .pt for each
# image, as published with token labeling or written by tools/generate_token_label.py).
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'

data_preprocessor = dict(
    type='mmextra.TokenLabelDataPreprocessor',
    label_size=14,  # side of the token grid
    smoothing=0.1,
    # 'published' exchanges rows and columns of the crop, as the released models were trained.
    coord_order='xy',
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmextra.LoadTokenLabel', data_root='data/label_top5_train_nfnet'),
    dict(type='mmextra.TokenLabelRandomFlip', prob=0.5),
    # m9-mstd0.5-inc1, before the crop: the label map covers the full image
    dict(
        type='mmextra.TokenLabelRandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[round(x) for x in _base_.bgr_mean], interpolation='bicubic'),
    ),
    dict(
        type='mmextra.TokenLabelRandomResizedCrop',
        scale=224,
        backend='pillow',
        interpolation='random',
    ),
    dict(
        type='RandomErasing',
        erase_prob=0.25,
        mode='rand',
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=_base_.bgr_mean,
        fill_std=_base_.bgr_std,
    ),
    dict(type='PackInputs', algorithm_keys=('token_label', 'crop_coords')),
]
train_dataloader = dict(batch_size=128, dataset=dict(pipeline=train_pipeline))
