# O2DETR R101 on DOTA-v1.0, single scale.
_base_ = 'o2detr_r50_16xb2-50e_dota-ss.py'

model = dict(
    backbone=dict(depth=101, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101'))
)
test_evaluator = dict(outfile_prefix='work_dirs/o2detr_r101_16xb2-50e_dota-ss/Task1')
