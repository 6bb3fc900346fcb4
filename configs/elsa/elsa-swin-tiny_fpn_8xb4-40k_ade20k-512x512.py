# Semantic FPN with AdamW 2e-4 and weight decay 1e-4 for 40k iterations: as the host's PoolFormer.
_base_ = 'mmseg::poolformer/fpn_poolformer_s12_8xb4-40k_ade20k-512x512.py'

checkpoint_file = None
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.ELSASwin',
        arch='tiny',
        group_width=4,
        drop_path_rate=0.1,
        out_indices=(0, 1, 2, 3),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
