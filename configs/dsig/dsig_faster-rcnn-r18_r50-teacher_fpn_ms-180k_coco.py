# Table 1 of the paper: Faster R-CNN R18 from R50; published 37.25 box AP on COCO val.
_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py', 'mmdet::common/ms-90k_coco.py']

model = dict(
    backbone=dict(depth=18, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)

custom_hooks = [
    dict(
        type='mmextra.InstanceGraphDistillHook',
        teacher=dict(
            config='mmdet::faster_rcnn/faster-rcnn_r50_fpn_ms-3x_coco.py',
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/'
            'faster_rcnn_r50_fpn_mstrain_3x_coco/'
            'faster_rcnn_r50_fpn_mstrain_3x_coco_20210524_110822-e10bd31c.pth',
        ),
        feat=0.5,
        node_fg=0.5,
        node_bg=dict(weight=0.5, alpha=7.5),
        edge=2.0,
        mine_thr=0.6,
        roi_cls=dict(weight=3.0, T=1.0),
        roi_reg=1.0,
    )
]

# "1x" of the paper: 180k iterations of 8 images (4 devices x 2) at lr 0.01, a tenth at 120k and 160k.
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
