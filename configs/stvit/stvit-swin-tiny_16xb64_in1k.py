_base_ = 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py'

# 3x3 semantic tokens for a window of 7x7, no recovery. The paper does not say how the third stage is divided.
model = dict(
    backbone=dict(_delete_=True, type='mmextra.STViTSwin', arch='tiny', drop_path_rate=0.2)
)
