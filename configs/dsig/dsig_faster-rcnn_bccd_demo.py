# The student of faster-rcnn-plain_bccd_demo.py with the published weights of R18 from R50.
_base_ = 'faster-rcnn-plain_bccd_demo.py'

custom_hooks = [
    dict(
        type='mmextra.InstanceGraphDistillHook',
        teacher=dict(
            config='mmextra::dsig/faster-rcnn-teacher_bccd_demo.py',
            checkpoint='work_dirs/faster-rcnn-teacher_bccd_demo/epoch_12.pth',
        ),
    )
]
