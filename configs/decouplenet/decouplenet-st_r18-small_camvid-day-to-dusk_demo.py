# CamVid: phase 2, from decouplenet_r18-small_camvid-day-to-dusk_demo.py and its soft labels.
_base_ = [
    'mmseg::_base_/default_runtime.py',
    '../_base_/models/aspp-sum_r18-small.py',
    '../_base_/datasets/camvid_day_dusk.py',
    '../_base_/schedules/small_domain_adaptation.py',
]

soft_labels = 'work_dirs/soft_labels/camvid-day-to-dusk'
model = dict(
    type='mmextra.DecoupleSelfTraining',
    thresholds=f'{soft_labels}/thresholds.json',
    data_preprocessor=dict(size=(128, 160)),
    decode_head=dict(num_classes=11, dilations=(2, 4, 6, 8)),
)
train_dataloader = dict(
    dataset=dict(
        target=dict(
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='mmextra.LoadSoftLabel', folder=soft_labels),
                dict(type='Resize', scale=(240, 180), keep_ratio=False),
                dict(
                    type='mmextra.TrackedRandomSizedCrop',
                    width=240,
                    ratio_range=(0.75, 1.5),
                    crop_size=(128, 160),
                    keep_image=True,
                ),
                dict(
                    type='mmextra.TorchColorJitter',
                    brightness=0.5,
                    contrast=0.5,
                    saturation=0.5,
                    hue=0.03,  # colours tell classes apart here; 0.2 is published
                ),
                dict(
                    type='PackSegInputs',
                    meta_keys=('img_path', 'img_shape', 'geometry', 'full_img', 'soft_label'),
                ),
            ]
        )
    )
)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
model_wrapper_cfg = dict(type='mmextra.StepwiseDataParallel')
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=160, by_epoch=False)]
train_cfg = dict(max_iters=160)
default_hooks = dict(checkpoint=dict(interval=160))
load_from = 'work_dirs/decouplenet_r18-small_camvid-day-to-dusk_demo/iter_300.pth'
