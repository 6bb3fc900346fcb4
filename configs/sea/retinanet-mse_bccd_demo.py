# The baseline of sea_retinanet_bccd_demo.py: plain squared difference of the pyramids.
_base_ = 'retinanet-plain_bccd_demo.py'

custom_hooks = [
    dict(
        type='mmextra.InstanceGraphDistillHook',
        teacher=dict(
            config='mmextra::sea/retinanet-teacher_bccd_demo.py',
            checkpoint='work_dirs/retinanet-teacher_bccd_demo/epoch_12.pth',
        ),
        # As strong as the losses of SEA: equal norm of the gradient at the start of training, by
        # tools/distill_gradients.py.
        feat=0.0063,
        node_fg=None,
        node_bg=None,
        edge=None,
        roi_cls=None,
        roi_reg=None,
    )
]
