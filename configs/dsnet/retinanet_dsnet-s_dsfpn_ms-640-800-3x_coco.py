_base_ = './retinanet_dsnet-s_fpn_ms-640-800-3x_coco.py'

model = dict(neck=dict(type='mmextra.DSFPN'))
