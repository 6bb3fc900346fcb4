# Images drawn on the fly, see mmextra/backbones/drawn_images.py. Nothing to download.
data_preprocessor = dict(mean=[127.5] * 3, std=[60.0] * 3, to_rgb=False)  # drawn as RGB
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmextra.DrawnImages',
        task='same_colour',
        num_images=6000,
        size=64,
        seed=0,
        pipeline=[dict(type='PackInputs')],
    ),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmextra.DrawnImages',
        task='same_colour',
        num_images=1000,
        size=64,
        seed=1,
        pipeline=[dict(type='PackInputs')],
    ),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
