_base_ = './stvit-r-swin-small_16xb64_in1k.py'

# By the same rule; the paper has no tiny model.
model = dict(backbone=dict(arch='tiny', drop_path_rate=0.2))
