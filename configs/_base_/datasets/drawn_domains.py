# Coloured shapes in two domains, drawn when they are asked for. Nothing to download.
crop = dict(
    type='mmextra.TrackedRandomSizedCrop', width=64, ratio_range=(1.0, 1.5), crop_size=(64, 64)
)
source = dict(
    type='mmextra.DrawnDomains',
    domain='source',
    num_images=400,
    seed=0,
    pipeline=[crop, dict(type='PackSegInputs')],
)
target = dict(
    type='mmextra.DrawnDomains',
    domain='target',
    num_images=400,
    seed=1,
    pipeline=[crop, dict(type='PackSegInputs')],
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='mmextra.DomainPairSampler'),
    dataset=dict(type='mmextra.DomainPairDataset', source=source, target=target),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmextra.DrawnDomains',
        domain='target',
        num_images=200,
        seed=2,
        test_mode=True,
        pipeline=[dict(type='PackSegInputs')],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='mmextra.ClassIoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
