# One small object among textures, ten classes, drawn on the fly: see mmextra/backbones/drawn_images.py.
_base_ = './drawn_images.py'

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='mmextra.ObjectAmongTextures',
        num_images=2400,
        size=64,
        seed=0,
        pipeline=[dict(type='PackInputs')],
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='mmextra.ObjectAmongTextures',
        num_images=1000,
        size=64,
        seed=1,
        pipeline=[dict(type='PackInputs', algorithm_keys=('object_mask',))],
    )
)
test_dataloader = val_dataloader
