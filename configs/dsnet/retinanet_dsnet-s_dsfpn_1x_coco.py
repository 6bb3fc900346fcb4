_base_ = './retinanet_dsnet-s_fpn_1x_coco.py'

model = dict(neck=dict(type='mmextra.DSFPN'))
