# O2DETR R50 on DOTA-v1.0, three scales.
_base_ = 'o2detr_r50_16xb2-50e_dota-ss.py'

# Made by `tools/prepare_data.py dota-split` from images at 0.5, 1.0 and 1.5 times their size, windows
# of 1024 pixels, 500 of them shared.
data_root = '{{$MMEXTRA_DATA:data}}/split_ms_dota/'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
test_evaluator = dict(outfile_prefix='work_dirs/o2detr_r50_16xb2-50e_dota-ms/Task1')
