# CamVid: soft labels for phase 2, `python tools/test.py THIS PHASE1_CHECKPOINT`.
_base_ = './decouplenet_r18-small_camvid-day-to-dusk_demo.py'

model = dict(test_cfg=dict(mode='logits'))
test_dataloader = dict(
    dataset=dict(
        data_prefix=dict(_delete_=True, img_path='img_dir/train'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(240, 180), keep_ratio=False),
            dict(type='PackSegInputs'),
        ],
    )
)
test_evaluator = dict(
    _delete_=True,
    type='mmextra.SoftLabelDumper',
    folder='work_dirs/soft_labels/camvid-day-to-dusk',
    # 0.8 is published; see README.md for why the demonstrations keep more.
    keep=0.95,
)
