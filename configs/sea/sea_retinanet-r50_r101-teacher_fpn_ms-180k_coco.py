# RetinaNet R50, 2x, from R101, 3x; published 40.64 box AP on COCO val, above its teacher.
_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', 'mmdet::common/ms-90k_coco.py']

custom_hooks = [
    dict(
        type='mmextra.SEADistillHook',
        teacher=dict(
            config='mmdet::retinanet/retinanet_r101_fpn_ms-640-800-3x_coco.py',
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/'
            'retinanet_r101_fpn_mstrain_3x_coco/'
            'retinanet_r101_fpn_mstrain_3x_coco_20210720_214650-7ee888e0.pth',
        ),
        # Ours: the paper publishes no weights.
        anchor_weight=2.0,
        topo_weight=5.0,
    )
]

# 2x of detectron2: 180k iterations of 16 images.
max_iter = 180000
train_cfg = dict(max_iters=max_iter)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(
        type='MultiStepLR',
        begin=0,
        end=max_iter,
        by_epoch=False,
        milestones=[120000, 160000],
        gamma=0.1,
    ),
]
optim_wrapper = dict(optimizer=dict(lr=0.01))  # of one-stage detectors, for 16 images
