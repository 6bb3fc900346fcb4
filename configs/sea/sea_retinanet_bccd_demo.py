# The student of retinanet-plain_bccd_demo.py, distilled.
_base_ = 'retinanet-plain_bccd_demo.py'

custom_hooks = [
    dict(
        type='mmextra.SEADistillHook',
        teacher=dict(
            config='mmextra::sea/retinanet-teacher_bccd_demo.py',
            checkpoint='work_dirs/retinanet-teacher_bccd_demo/epoch_12.pth',
        ),
    )
]
