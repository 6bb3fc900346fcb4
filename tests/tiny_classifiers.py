"""Runs of the stock runner on a handful of random images, for tests of classifiers and their hooks."""

import torch
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch.utils.data import DataLoader

_RUNS = 0


def random_images(count=8, size=32, classes=3):
    """Samples as mmpretrain's ``PackInputs`` makes them."""
    from mmpretrain.structures import DataSample

    noise = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=noise)
    return [
        dict(inputs=image, data_samples=DataSample().set_gt_label(i % classes))
        for i, image in enumerate(pixels)
    ]


def classifier(backbone, in_channels=24, classes=3, **model):
    """The config of a stock classifier around a backbone."""
    head = dict(
        type='VisionTransformerClsHead',
        num_classes=classes,
        in_channels=in_channels,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
    )
    preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3, num_classes=classes)
    return dict(
        type='ImageClassifier',
        backbone=backbone,
        head=head,
        data_preprocessor=preprocessor,
        **model,
    )


def classification_runner(model, work_dir, hooks=(), epochs=2, size=32, **options):
    """A runner of ``epochs`` epochs of two iterations, with validation and test on the same images."""
    from mmpretrain.evaluation import Accuracy

    global _RUNS
    _RUNS += 1
    init_default_scope('mmpretrain')
    batches = DataLoader(random_images(size=size), batch_size=4, collate_fn=pseudo_collate)
    return Runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=batches,
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=1),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
        val_dataloader=batches,
        val_cfg=dict(),
        val_evaluator=Evaluator([Accuracy()]),
        test_dataloader=batches,
        test_cfg=dict(),
        test_evaluator=Evaluator([Accuracy()]),
        custom_hooks=list(hooks),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        randomness=dict(seed=0),
        default_scope='mmpretrain',
        experiment_name=f'classifier-{_RUNS}',
        **{'log_level': 'WARNING', **options},
    )
