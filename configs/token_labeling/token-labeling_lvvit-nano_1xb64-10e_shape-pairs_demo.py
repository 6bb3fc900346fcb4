# The paper's claim at the size of a demonstration: two objects side by side, the image has the
# class of the larger one, and every token knows what it shows. To hold against it:
#   --cfg-options model.head.loss.dense_weight=0 train_dataloader.dataset.token_label=None
#   --cfg-options train_dataloader.dataset.token_label=shuffled
_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/datasets/drawn_images.py',
    '../_base_/schedules/small_classification.py',
]

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
    head=dict(
        type='mmextra.TokenLabelClsHead',
        num_classes=12,
        in_channels=96,
        loss=dict(type='mmextra.TokenLabelLoss', dense_weight=1.0),
    ),
)
data_preprocessor = dict(type='mmextra.TokenLabelDataPreprocessor', num_classes=12, label_size=8)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='mmextra.ShapePairs',
        num_images=5000,
        token_label='exact',
        pipeline=[
            dict(type='mmextra.TokenLabelRandomFlip', prob=0.5),
            dict(type='PackInputs', algorithm_keys=('token_label',)),
        ],
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='mmextra.ShapePairs',
        num_images=1000,
        seed=1,
        pipeline=[dict(type='PackInputs')],
    )
)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_epochs=10, val_interval=1)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
randomness = dict(seed=0)
