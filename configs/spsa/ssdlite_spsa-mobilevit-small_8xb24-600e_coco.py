# Maps of strides 16 and 32, as with MobileNetV2. Start from ImageNet weights:
# --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.prefix=backbone. \
#     model.backbone.init_cfg.checkpoint=work_dirs/spsa-mobilevit-small_8xb128_in1k/epoch_300.pth
_base_ = 'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py'

model = dict(
    # As MobileViT was trained: values in [0, 1], BGR.
    data_preprocessor=dict(mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=False),
    backbone=dict(
        _delete_=True,
        type='mmextra.SPSAMobileViT',
        arch='small',
        spsa=dict(num_heads=4, tau=1.0),
        out_indices=(3, 4),
    ),
    neck=dict(in_channels=(128, 640), out_channels=(128, 640, 512, 256, 256, 128)),
    bbox_head=dict(in_channels=(128, 640, 512, 256, 256, 128)),
)
