# What the trusty token does, without CLIP: six seen classes and two novel ones are vectors, each novel
# one at cosine 0.8 to a seen one; images are 16x16 grids of noisy vectors. 300 iterations take a
# minute on one CPU core. To hold against it: tagclip_class-vectors-no-trusty_1xb16-300it_demo.py.
_base_ = 'mmseg::_base_/default_runtime.py'

vectors = dict(num_seen=6, num_novel=2, dim=32, cosine=0.8, seed=0)
novel_class = [6, 7]

model = dict(
    type='mmextra.TagCLIP',
    data_preprocessor=dict(type='SegDataPreProcessor', size=(16, 16)),
    backbone=dict(type='mmextra.ClassVectorBackbone'),
    text_encoder=dict(type='mmextra.ClassVectorEncoder', vectors=vectors),
    decode_head=dict(type='mmextra.TagCLIPHead', in_channels=32, num_heads=4),
    novel_class=novel_class,
    test_cfg=dict(mode='whole'),
)

train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='mmextra.ClassVectorGrids', num_images=2000, vectors=vectors, noise=0.5, seed=0
    ),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmextra.ClassVectorGrids', num_images=200, vectors=vectors, noise=0.5, seed=1
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='mmextra.ZeroShotIoUMetric', novel_class=novel_class)
test_evaluator = val_evaluator

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.01))
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=1e-6, end=300, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=300, val_interval=300)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=300),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
randomness = dict(seed=0)
