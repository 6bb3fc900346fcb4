# RetinaNet R50 from R101: about 36.2 -> 38.48 box AP. The levels are those of the FPN, P3 to P7.
_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', 'mmdet::common/ms-90k_coco.py']

custom_hooks = [
    dict(
        type='mmextra.ReviewKDHook',
        teacher=dict(
            config='mmdet::retinanet/retinanet_r101_fpn_ms-640-800-3x_coco.py',
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/'
            'retinanet_r101_fpn_mstrain_3x_coco/'
            'retinanet_r101_fpn_mstrain_3x_coco_20210720_214650-7ee888e0.pth',
        ),
        student_layers='neck',
        student_channels=[256] * 5,
        teacher_channels=[256] * 5,
        mid_channels=256,
        loss_weight=1.0,
    )
]

# 180k iterations of 8 images (4 devices x 2) at lr 0.005, a tenth at 120k and 160k.
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
optim_wrapper = dict(optimizer=dict(lr=0.005))
auto_scale_lr = dict(enable=False, base_batch_size=8)
