# Between the phases: `python tools/test.py THIS PHASE1_CHECKPOINT` stores the logits of the target's training
# images at the network's resolution, and the confidence threshold of each class.
_base_ = './decouplenet_r101-d8_4xb2-60k_gta5-to-cityscapes-512x896.py'

model = dict(test_cfg=dict(mode='logits'))
test_dataloader = dict(
    dataset=dict(
        data_prefix=dict(_delete_=True, img_path='leftImg8bit/train'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(2048, 1024), keep_ratio=False),
            dict(type='PackSegInputs'),
        ],
    )
)
test_evaluator = dict(
    _delete_=True,
    type='mmextra.SoftLabelDumper',
    folder='work_dirs/soft_labels/gta5-to-cityscapes',
    keep=0.8,
)
