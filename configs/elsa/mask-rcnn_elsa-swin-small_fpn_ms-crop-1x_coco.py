_base_ = './mask-rcnn_elsa-swin-tiny_fpn_ms-crop-1x_coco.py'

model = dict(backbone=dict(arch='small', group_width=8, drop_path_rate=0.2))
