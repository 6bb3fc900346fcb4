# The paper's claim at the size of a demonstration: two objects side by side, the image has the
# class of the larger one, and every token knows what it shows. To hold against it:
#   --cfg-options model.head.loss.dense_weight=0 train_dataloader.dataset.token_label=None
#   --cfg-options train_dataloader.dataset.token_label=shuffled
_base_ = 'mmpretrain::_base_/default_runtime.py'

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmextra.LVViT',
        arch=dict(embed_dims=96, num_layers=4, num_heads=4, stem_channels=32),
        img_size=64,
        patch_size=8,
        mix_token=True,
        out_type='dense',
    ),
    head=dict(type='mmextra.TokenLabelClsHead', num_classes=12, in_channels=96),
)
data_preprocessor = dict(
    type='mmextra.TokenLabelDataPreprocessor',
    num_classes=12,
    label_size=8,
    mean=[100.0, 100.0, 100.0],
    std=[60.0, 60.0, 60.0],
)
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmextra.ShapePairs',
        num_images=5000,
        token_label='exact',
        pipeline=[
            dict(type='mmextra.TokenLabelRandomFlip', prob=0.5),
            dict(type='PackInputs', algorithm_keys=('token_label',)),
        ],
    ),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmextra.ShapePairs', num_images=1000, seed=1, pipeline=[dict(type='PackInputs')]
    ),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_dataloader = val_dataloader
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=10, val_interval=1)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
randomness = dict(seed=0)
