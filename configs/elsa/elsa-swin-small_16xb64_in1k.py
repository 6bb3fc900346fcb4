_base_ = './elsa-swin-tiny_16xb64_in1k.py'

model = dict(backbone=dict(arch='small', group_width=8, drop_path_rate=0.3))
