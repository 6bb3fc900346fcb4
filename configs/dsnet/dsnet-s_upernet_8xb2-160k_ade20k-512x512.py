# Not in the paper: Swin-T's schedule. ImageNet weights as in mask-rcnn_dsnet-s_fpn_1x_coco.py.
_base_ = 'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'

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
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
