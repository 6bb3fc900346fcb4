_base_ = './volo-d2_8xb128_in1k.py'

model = dict(backbone=dict(arch='d3', drop_path_rate=0.5))
