_base_ = './vip-small7_8xb256_in1k.py'

model = dict(backbone=dict(arch='s14'))
