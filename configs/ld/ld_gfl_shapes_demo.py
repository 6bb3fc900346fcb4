# The student of gfl-plain_shapes_demo.py, distilled: one hook more, nothing else.
_base_ = 'gfl-plain_shapes_demo.py'

custom_hooks = [
    dict(
        type='mmextra.LocalizationDistillationHook',
        teacher=dict(
            config='mmextra::ld/gfl-teacher_shapes_demo.py',
            checkpoint='work_dirs/demo/teacher/epoch_12.pth',
        ),
    )
]
