# Not in the paper: the schedule of RetinaNet, with AdamW. Start from ImageNet weights:
# --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.prefix=backbone. \
#     model.backbone.init_cfg.checkpoint=work_dirs/volo-d1_8xb128_in1k/epoch_310.pth
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.VOLO',
        arch='d1',
        img_size=(800, 1344),
        drop_path_rate=0.1,
        out_type='featmap',
        with_cls_attn=False,
    ),
    neck=dict(
        _delete_=True,
        type='mmextra.SimpleFeaturePyramid',
        in_channels=384,
        out_channels=256,
        scales=(2.0, 1.0, 0.5),  # strides 8, 16, 32, and 64 and 128 subsampled
        num_outs=5,
    ),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={'pos_embed': dict(decay_mult=0.0)}),
)
