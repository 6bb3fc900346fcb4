# The student of faster-rcnn-plain_bccd_demo.py, distilled with the published recipe of R18 from R50.
_base_ = 'faster-rcnn-plain_bccd_demo.py'

custom_hooks = [
    dict(
        type='mmextra.InstanceGraphDistillHook',
        teacher=dict(
            config='mmextra::dsig/faster-rcnn-teacher_bccd_demo.py',
            checkpoint='work_dirs/faster-rcnn-teacher_bccd_demo/epoch_12.pth',
        ),
        # The graph is summed over the images of a device: published with 2, here 8.
        node_fg=0.5 / 4,
        node_bg=dict(weight=0.5 / 4, alpha=7.5),
        edge=2.0 / 4,
    )
]
