# Oriented LD of arXiv 2204.05957, student with the GWD loss. Published with rotated RetinaNets, where R18 goes
# from 37.1 to 40.2 AP on DOTA-v1.0 val; the detector here is an oriented GFL.
_base_ = 'oriented-gfl_r34_fpn_1x_dota-ss.py'

model = dict(
    backbone=dict(depth=18, init_cfg=dict(checkpoint='torchvision://resnet18')),
)

custom_hooks = [
    dict(
        type='mmextra.LocalizationDistillationHook',
        teacher=dict(
            config='mmextra::ld/oriented-gfl_r34_fpn_1x_dota-ss.py',
            # Trained with that config.
            checkpoint='work_dirs/oriented-gfl_r34_fpn_1x_dota-ss/epoch_12.pth',
        ),
        # One region for both; 15 and 15 for a student with loss_type='kld'.
        ld=dict(weight=10, T=5),
        kd=dict(weight=20, T=5),
    )
]
test_evaluator = dict(
    outfile_prefix='work_dirs/ld_oriented-gfl-r18_r34-teacher_fpn_1x_dota-ss/Task1'
)
