# The student of gfl-plain_shapes_demo.py, distilled: one hook more, nothing else.
_base_ = 'gfl-plain_shapes_demo.py'

custom_hooks = [
    dict(
        type='mmextra.LocalizationDistillationHook',
        teacher=dict(
            config='mmextra::ld/gfl-teacher_shapes_demo.py',
            checkpoint='work_dirs/demo/teacher/epoch_12.pth',
        ),
        # Class distillation lowers the mAP of this student (see README.md): its weight is published
        # for 80 classes, over which it averages, and the teacher is hardly better at naming shapes.
        kd=None,
    )
]
