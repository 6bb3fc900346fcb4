_base_ = './vip-small7_8xb256_in1k.py'

# The stochastic depth is not in the paper's tables: from memory of the code.
model = dict(backbone=dict(arch='m7', drop_path_rate=0.2), head=dict(in_channels=512))
