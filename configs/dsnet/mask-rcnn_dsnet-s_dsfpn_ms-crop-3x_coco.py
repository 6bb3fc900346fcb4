_base_ = './mask-rcnn_dsnet-s_fpn_ms-crop-3x_coco.py'

model = dict(neck=dict(type='mmextra.DSFPN'))
