# Coloured shapes: soft labels for phase 2, `python tools/test.py THIS PHASE1_CHECKPOINT`.
_base_ = './decouplenet_r18-small_drawn-source-to-target_demo.py'

model = dict(test_cfg=dict(mode='logits'))
test_dataloader = dict(dataset=dict(num_images=400, seed=1))
test_evaluator = dict(
    _delete_=True,
    type='mmextra.SoftLabelDumper',
    folder='work_dirs/soft_labels/drawn-source-to-target',
    # 0.8 is published. Here the least sure pixels are those along the shapes, and without them nothing keeps the shapes
    # from growing.
    keep=1.0,
)
