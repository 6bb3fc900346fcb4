# The student of retinanet-plain_bccd_demo.py, distilled.
_base_ = 'retinanet-plain_bccd_demo.py'

custom_hooks = [
    dict(
        type='mmextra.SEADistillHook',
        teacher=dict(
            config='mmextra::sea/retinanet-teacher_bccd_demo.py',
            checkpoint='work_dirs/retinanet-teacher_bccd_demo/epoch_12.pth',
        ),
        # A hundredth of the defaults: the features of so small a teacher are large. With these the pull is of the
        # size of the detection losses', by tools/distill_gradients.py.
        anchor_weight=0.02,
        topo_weight=0.05,
    )
]
