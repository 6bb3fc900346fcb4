# Not in the paper: the schedule of Swin-T's Mask R-CNN. Start from ImageNet weights:
# --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.prefix=backbone. \
#     model.backbone.init_cfg.checkpoint=work_dirs/volo-d1_8xb128_in1k/epoch_310.pth
_base_ = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'

pretrained = None
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
        num_outs=5,
    ),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'pos_embed': dict(decay_mult=0.0)}))
