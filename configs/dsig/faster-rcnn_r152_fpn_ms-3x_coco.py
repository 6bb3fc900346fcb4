# The teacher of the R101 student; mmdet has no checkpoint of it.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r101_fpn_ms-3x_coco.py'

model = dict(
    backbone=dict(depth=152, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet152'))
)
