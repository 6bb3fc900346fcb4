# The student of gfl-plain_bccd.py, distilled.
_base_ = 'gfl-plain_bccd.py'

custom_hooks = [
    dict(
        type='mmextra.LocalizationDistillationHook',
        teacher=dict(
            config='mmextra::ld/gfl-teacher_bccd.py',
            checkpoint='work_dirs/gfl-teacher_bccd/epoch_12.pth',
        ),
        kd=None,  # as in ld_gfl_shapes_demo.py
    )
]
