# Not in the paper: the schedule of Swin-T's UPerNet. Start from ImageNet weights:
# --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.prefix=backbone. \
#     model.backbone.init_cfg.checkpoint=work_dirs/volo-d1_8xb128_in1k/epoch_310.pth
_base_ = 'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'

checkpoint_file = None
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.VOLO',
        arch='d1',
        img_size=512,
        drop_path_rate=0.1,
        out_type='featmap',
        with_cls_attn=False,
    ),
    neck=dict(type='mmextra.SimpleFeaturePyramid', in_channels=384, out_channels=256, num_outs=4),
    decode_head=dict(in_channels=[256, 256, 256, 256]),
    auxiliary_head=dict(in_channels=256),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'pos_embed': dict(decay_mult=0.0)}))
