# Phase 2: online enhanced self-training, from phase 1 and the soft labels that were written with it.
_base_ = [
    'mmseg::_base_/default_runtime.py',
    '../_base_/models/aspp-sum_r101-d8.py',
    '../_base_/datasets/gta5_cityscapes.py',
    '../_base_/schedules/decouplenet_phase2.py',
]

soft_labels = 'work_dirs/soft_labels/gta5-to-cityscapes'
model = dict(
    type='mmextra.DecoupleSelfTraining',
    backbone=dict(init_cfg=None),
    thresholds=f'{soft_labels}/thresholds.json',
)
train_dataloader = dict(
    dataset=dict(
        target=dict(
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='mmextra.LoadSoftLabel', folder=soft_labels),
                dict(type='Resize', scale=(2048, 1024), keep_ratio=False),
                dict(
                    type='mmextra.TrackedRandomSizedCrop',
                    width=2200,
                    crop_size=(512, 896),
                    keep_image=True,
                ),
                dict(
                    type='mmextra.TorchColorJitter',
                    brightness=0.5,
                    contrast=0.5,
                    saturation=0.5,
                    hue=0.2,
                ),
                dict(
                    type='PackSegInputs',
                    meta_keys=('img_path', 'img_shape', 'geometry', 'full_img', 'soft_label'),
                ),
            ]
        )
    )
)
load_from = 'work_dirs/decouplenet_r101-d8_4xb2-60k_gta5-to-cityscapes-512x896/iter_60000.pth'
