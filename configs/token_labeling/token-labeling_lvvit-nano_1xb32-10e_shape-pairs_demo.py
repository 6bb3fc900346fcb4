# The paper's claim at the size of a demonstration: two objects side by side, the image has the
# class of the larger one, and every token knows what it shows. The hook logs how often the tokens
# are right. To hold against it: without token labels, lvvit-nano_1xb32-10e_shape-pairs_demo.py; with
# shuffled ones, token-labeling-shuffled_lvvit-nano_1xb32-10e_shape-pairs_demo.py.
_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/datasets/drawn_images.py',
    '../_base_/schedules/small_classification.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmextra.LVViT',
        arch=dict(embed_dims=96, num_layers=4, num_heads=4, stem_channels=16),
        img_size=64,
        patch_size=8,
        mix_token=True,
        out_type='dense',
    ),
    head=dict(
        type='mmextra.TokenLabelClsHead',
        num_classes=12,
        in_channels=96,
        # The class token alone decides: the patch tokens of both objects are sure of theirs.
        aux_test_weight=0.0,
        # The target of the class token is half of what the map says of the whole image, which is
        # of both objects, and half of the image's class.
        loss=dict(type='mmextra.TokenLabelLoss', dense_weight=1.0, with_gt=True),
    ),
)
data_preprocessor = dict(type='mmextra.TokenLabelDataPreprocessor', num_classes=12, label_size=8)
train_dataloader = dict(
    batch_size=32,
    dataset=dict(
        _delete_=True,
        type='mmextra.ShapePairs',
        num_images=2000,
        token_label='exact',
        pipeline=[
            dict(type='mmextra.TokenLabelRandomFlip', prob=0.5),
            dict(type='PackInputs', algorithm_keys=('token_label',)),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='mmextra.ShapePairs',
        num_images=1000,
        seed=1,
        token_label='exact',
        pipeline=[dict(type='PackInputs', algorithm_keys=('token_label',))],
    )
)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_epochs=10, val_interval=2)
custom_hooks = [dict(type='mmextra.TokenAccuracyHook')]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
randomness = dict(seed=0)
