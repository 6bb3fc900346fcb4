_base_ = '../volo/volo-d3_8xb128_in1k.py'

model = dict(backbone=dict(type='mmextra.ELSAVOLO'))
