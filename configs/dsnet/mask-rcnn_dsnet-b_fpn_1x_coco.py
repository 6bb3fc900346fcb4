# ImageNet weights: dsnet-base_8xb128_in1k.py.
_base_ = './mask-rcnn_dsnet-s_fpn_1x_coco.py'

model = dict(backbone=dict(arch='b'))
