# Window attention in all stages.
_base_ = './elsa-swin-nano_1xb64-10e_shapes-patterns_demo.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        arch=dict(embed_dims=32, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8]),
        img_size=64,
        window_size=4,
        drop_path_rate=0.0,
        pad_small_map=True,
    )
)
