# Instance segmentation: pixels belong to the masks of objects instead of their boxes.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'

custom_hooks = [
    dict(
        type='mmextra.SEADistillHook',
        teacher=dict(
            config='mmdet::mask_rcnn/mask-rcnn_r101_fpn_ms-poly-3x_coco.py',
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn/'
            'mask_rcnn_r101_fpn_mstrain-poly_3x_coco/'
            'mask_rcnn_r101_fpn_mstrain-poly_3x_coco_20210524_200244-5675c317.pth',
        ),
        # Ours: the paper publishes no weights.
        anchor_weight=2.0,
        topo_weight=5.0,
        region='mask',
    )
]
