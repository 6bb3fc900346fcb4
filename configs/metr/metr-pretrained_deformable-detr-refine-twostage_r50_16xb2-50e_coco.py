# Stock two-stage Deformable DETR, started from what METR has learned:
#   python tools/metr_export.py work_dirs/METR/epoch_1.pth metr_deformable.pth --target deformable-detr
_base_ = 'mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py'

# FFNs and positional encoding as METR was trained with: 2048 hidden channels, temperature 20.
model = dict(
    backbone=dict(init_cfg=None),
    encoder=dict(layer_cfg=dict(ffn_cfg=dict(feedforward_channels=2048))),
    decoder=dict(layer_cfg=dict(ffn_cfg=dict(feedforward_channels=2048))),
    positional_encoding=dict(offset=0.0, temperature=20),
)
load_from = 'metr_deformable.pth'
