# AdamW 6e-5, weight decay 0.01, 1500 iterations of warm-up, linear decay, 160k: as the host's Swin.
_base_ = 'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'

checkpoint_file = None
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.ELSASwin',
        arch='tiny',
        group_width=4,
        drop_path_rate=0.3,
        out_indices=(0, 1, 2, 3),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
