# Coloured shapes: phase 2, from decouplenet_r18-small_drawn-source-to-target_demo.py and its soft labels.
_base_ = [
    'mmseg::_base_/default_runtime.py',
    '../_base_/models/aspp-sum_r18-small.py',
    '../_base_/datasets/drawn_domains.py',
    '../_base_/schedules/small_domain_adaptation.py',
]

soft_labels = 'work_dirs/soft_labels/drawn-source-to-target'
model = dict(
    type='mmextra.DecoupleSelfTraining',
    thresholds=f'{soft_labels}/thresholds.json',
)
train_dataloader = dict(
    dataset=dict(
        target=dict(
            pipeline=[
                dict(type='mmextra.LoadSoftLabel', folder=soft_labels),
                dict(
                    type='mmextra.TrackedRandomSizedCrop',
                    width=64,
                    ratio_range=(
                        1.0,
                        1.0,
                    ),  # a stride of 8 on 64 pixels leaves no room for other sizes
                    crop_size=(64, 64),
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
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=800, by_epoch=False)]
train_cfg = dict(max_iters=800)
default_hooks = dict(checkpoint=dict(interval=800))
load_from = 'work_dirs/decouplenet_r18-small_drawn-source-to-target_demo/iter_1500.pth'
