# Learning rate (1e-3) and stochastic depth are not in the paper's table: from memory of the code.
_base_ = './volo-d4_8xb128_in1k.py'

model = dict(backbone=dict(arch='d5', drop_path_rate=0.75))
