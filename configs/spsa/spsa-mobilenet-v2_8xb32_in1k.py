# Our choice: the plugin layer in the host's MobileNetV2, with its schedule.
_base_ = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'

model = dict(backbone=dict(type='mmextra.SPSAMobileNetV2', spsa=dict(num_heads=8, tau=1.0)))
