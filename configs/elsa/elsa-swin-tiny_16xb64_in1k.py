# Batch 1024, AdamW 1e-3, weight decay 0.05, 20 epochs of warm-up from 1e-6, down to 1e-5, 300 epochs, Swin's
# augmentation and gradients clipped at 5: all as the host's Swin-T.
_base_ = 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.ELSASwin',
        arch='tiny',
        group_width=4,  # 8 for the larger ones
        drop_path_rate=0.1,
    )
)

# Crop ratio 0.9 at test time: 224 of 248 pixels.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=248, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
