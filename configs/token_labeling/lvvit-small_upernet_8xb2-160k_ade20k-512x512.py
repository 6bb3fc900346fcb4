# Start from ImageNet weights: --cfg-options model.backbone.init_cfg.type=Pretrained \
#     model.backbone.init_cfg.prefix=backbone. \
#     model.backbone.init_cfg.checkpoint=work_dirs/lvvit-small_8xb128_in1k/epoch_310.pth
# AdamW with 6e-5, weight decay 0.01, 1500 iterations of warm-up and 160k of poly are the base's.
_base_ = 'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'

checkpoint_file = None
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.LVViT',
        arch='s',
        img_size=512,
        drop_path_rate=0.1,
        out_indices=(6, 9, 12, 15),
        out_type='featmap',
    ),
    neck=dict(type='mmextra.LVViTPyramid', in_channels=384),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024),
)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={'pos_embed': dict(decay_mult=0.0), 'cls_token': dict(decay_mult=0.0)}
    )
)
