# The baseline of dsig_faster-rcnn_bccd_demo.py: squared difference of the pyramids, no graph.
_base_ = 'faster-rcnn-plain_bccd_demo.py'

custom_hooks = [
    dict(
        type='mmextra.InstanceGraphDistillHook',
        teacher=dict(
            config='mmextra::dsig/faster-rcnn-teacher_bccd_demo.py',
            checkpoint='work_dirs/faster-rcnn-teacher_bccd_demo/epoch_12.pth',
        ),
        feat=0.5,
        node_fg=None,
        node_bg=None,
        edge=None,
        roi_cls=None,
        roi_reg=None,
    )
]
