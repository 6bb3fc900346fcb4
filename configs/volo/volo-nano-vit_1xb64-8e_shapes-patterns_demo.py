# A transformer of as many parameters on the same stem, with tokens of stride 16 only.
_base_ = './volo-nano_1xb64-8e_shapes-patterns_demo.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.LVViT',
        arch=dict(embed_dims=96, num_layers=5, num_heads=4, stem_channels=32),
        mlp_ratio=2.64,  # for the same number of parameters
        img_size=64,
        patch_size=16,
        out_type='dense',
    )
)
