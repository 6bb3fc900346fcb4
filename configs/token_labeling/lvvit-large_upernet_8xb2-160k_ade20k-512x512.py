_base_ = './lvvit-small_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        # Arch 'l', but the published config leaves the divisor of the residual branches at 1; it
        # is 3 in the classifier. For ours, say arch='l'.
        arch=dict(
            _delete_=True,
            embed_dims=768,
            num_layers=24,
            num_heads=12,
            skip_lam=1.0,
            stem_channels=128,
        ),
        drop_path_rate=0.5,
        out_indices=(14, 17, 20, 23),
    ),
    neck=dict(in_channels=768),
)
