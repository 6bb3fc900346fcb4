_base_ = './stvit_vit-nano_1xb32-10e_distractors_demo.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='VisionTransformer',
        arch=dict(embed_dims=96, num_layers=8, num_heads=3, feedforward_channels=384),
        img_size=64,
        patch_size=8,
        with_cls_token=False,
        final_norm=False,
        out_type='avg_featmap',
    )
)
