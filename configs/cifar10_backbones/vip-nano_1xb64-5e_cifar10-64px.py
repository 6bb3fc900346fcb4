_base_ = 'deit-nano_1xb64-5e_cifar10-64px.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmextra.VisionPermutator',
        arch=dict(
            patch_size=8, layers=(6,), embed_dims=(80,), transitions=(False,), segment_dims=(8,)
        ),
        img_size=64,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', in_channels=80),
)
