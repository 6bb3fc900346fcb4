# Faster R-CNN R50, 2x, from R101, 3x. Of two-stage pyramids P2 to P5 are aligned, the pooled P6 is not.
_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py', 'mmdet::common/ms-90k_coco.py']

custom_hooks = [
    dict(
        type='mmextra.SEADistillHook',
        teacher=dict(
            config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_ms-3x_coco.py',
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/'
            'faster_rcnn_r101_fpn_mstrain_3x_coco/'
            'faster_rcnn_r101_fpn_mstrain_3x_coco_20210524_110822-4d4d2ca8.pth',
        ),
        # Ours: the paper publishes no weights.
        anchor_weight=2.0,
        topo_weight=5.0,
    )
]

# 2x of detectron2: 180k iterations of 16 images, lr 0.02 as in the base.
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
