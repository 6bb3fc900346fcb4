_base_ = './stvit_deit-small_4xb256_in1k.py'

model = dict(backbone=dict(arch='deit-tiny'), head=dict(in_channels=192))
