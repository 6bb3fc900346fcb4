# MLP-Mixer of as many parameters as vip-nano, and the same schedule.
_base_ = './vip-nano_1xb64-20e_crossed-bars_demo.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='MlpMixer',
        arch=dict(embed_dims=64, num_layers=4, tokens_mlp_dims=128, channels_mlp_dims=224),
        img_size=64,
        patch_size=8,
    ),
    neck=dict(dim=1),
)
