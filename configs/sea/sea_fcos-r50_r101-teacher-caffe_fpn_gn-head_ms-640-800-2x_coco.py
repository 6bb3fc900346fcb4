# FCOS R50, 2x, from R101. The paper's FCOS is stronger than mmdet's (43.06 box AP, from a 3x teacher).
_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_ms-640-800-2x_coco.py'

custom_hooks = [
    dict(
        type='mmextra.SEADistillHook',
        teacher=dict(
            config='mmdet::fcos/fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco.py',
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/fcos/'
            'fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco/'
            'fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco-511424d6.pth',
        ),
        # Ours: the paper publishes no weights.
        anchor_weight=2.0,
        topo_weight=5.0,
    )
]
