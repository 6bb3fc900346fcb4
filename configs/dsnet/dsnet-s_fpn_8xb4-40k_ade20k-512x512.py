# Not in the paper: PoolFormer's schedule, whose maps have DS-Net's channels. ImageNet weights as in
# mask-rcnn_dsnet-s_fpn_1x_coco.py.
_base_ = 'mmseg::poolformer/fpn_poolformer_s12_8xb4-40k_ade20k-512x512.py'

checkpoint_file = None
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.DSNet',
        arch='s',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.1,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
)
