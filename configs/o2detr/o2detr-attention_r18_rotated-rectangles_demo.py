# o2detr_r18_rotated-rectangles_demo.py with the encoder of stock Deformable DETR, in its first five epochs:
# what the losses of the two are compared on.
_base_ = 'o2detr_r18_rotated-rectangles_demo.py'

model = dict(
    encoder=dict(
        type='DeformableDetrTransformerEncoder',
        layer_cfg=dict(
            _delete_=True,
            self_attn_cfg=dict(embed_dims=64, num_heads=8, dropout=0.0, batch_first=True),
            ffn_cfg=dict(embed_dims=64, feedforward_channels=256, ffn_drop=0.0),
        ),
    )
)
train_cfg = dict(max_epochs=5)
