# AdamW with 1e-4 and weight decay 0.05 (not on norms) is the base's already. Start from ImageNet weights:
# --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.prefix=backbone. \
#     model.backbone.init_cfg.checkpoint=work_dirs/dsnet-small_8xb128_in1k/epoch_300.pth
_base_ = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'

pretrained = None
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.DSNet',
        arch='s',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.1,
        # Two images on a GPU are few for batch statistics.
        norm_eval=True,
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
