# The student of configs/ld/gfl-plain_bccd.py, distilled from the teacher there.
_base_ = '../ld/gfl-plain_bccd.py'

custom_hooks = [
    dict(
        type='mmextra.ReviewKDHook',
        teacher=dict(
            config='mmextra::ld/gfl-teacher_bccd.py',
            checkpoint='work_dirs/gfl-teacher_bccd/epoch_12.pth',
        ),
        student_layers='neck',
        mid_channels=64,
        loss_weight=1.0,
    )
]
