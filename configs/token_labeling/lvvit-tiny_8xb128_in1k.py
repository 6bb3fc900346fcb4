_base_ = './lvvit-small_8xb128_in1k.py'

model = dict(backbone=dict(arch='t'), head=dict(in_channels=240))
