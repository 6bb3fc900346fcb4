# Mask R-CNN R50 from R101: 35.24 -> 36.98 mask AP.
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', 'mmdet::common/ms-poly-90k_coco-instance.py']

custom_hooks = [
    dict(
        type='mmextra.ReviewKDHook',
        teacher=dict(
            config='mmdet::mask_rcnn/mask-rcnn_r101_fpn_ms-poly-3x_coco.py',
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn/'
            'mask_rcnn_r101_fpn_mstrain-poly_3x_coco/'
            'mask_rcnn_r101_fpn_mstrain-poly_3x_coco_20210524_200244-5675c317.pth',
        ),
        student_layers='neck',
        student_channels=[256] * 5,
        teacher_channels=[256] * 5,
        mid_channels=256,
        loss_weight=0.8,
    )
]

# 180k iterations of 8 images (4 devices x 2) at lr 0.01, a tenth at 120k and 160k.
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
optim_wrapper = dict(optimizer=dict(lr=0.01))
auto_scale_lr = dict(enable=False, base_batch_size=8)
