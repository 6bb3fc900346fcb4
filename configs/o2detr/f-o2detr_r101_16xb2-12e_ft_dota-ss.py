# F-O2DETR R101 on DOTA-v1.0, single scale: a trained O2DETR, fine-tuned with a cascaded head.
_base_ = 'o2detr_r101_16xb2-50e_dota-ss.py'

load_from = 'work_dirs/o2detr_r101_16xb2-50e_dota-ss/epoch_50.pth'
model = dict(
    refine_head=dict(
        type='mmextra.O2DETRRefineHead',
        num_classes=15,
        embed_dims=256,
        fc_channels=1024,
        roi_size=7,
        strides=(8, 16, 32, 64),
    )
)

# All weights are trained, at a tenth of the rate.
optim_wrapper = dict(optimizer=dict(lr=0.00002))
train_cfg = dict(max_epochs=12, val_interval=3)
param_scheduler = None
test_evaluator = dict(outfile_prefix='work_dirs/f-o2detr_r101_16xb2-12e_ft_dota-ss/Task1')
