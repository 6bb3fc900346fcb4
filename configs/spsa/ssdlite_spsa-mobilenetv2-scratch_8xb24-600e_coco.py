_base_ = 'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py'

model = dict(backbone=dict(type='mmextra.SPSAMobileNetV2', spsa=dict(num_heads=8, tau=1.0)))
