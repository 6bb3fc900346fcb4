# O2DETR R101 on DOTA-v1.0, three scales.
_base_ = 'o2detr_r50_16xb2-50e_dota-ms.py'

model = dict(
    backbone=dict(depth=101, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101'))
)
test_evaluator = dict(outfile_prefix='work_dirs/o2detr_r101_16xb2-50e_dota-ms/Task1')
