"""Small real training runs: a drawn data set, small detectors, the stock runner."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import List, Optional

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

import mmextra.registry  # noqa: F401  `mmextra::` bases, safe resuming

ROOT = Path(__file__).parents[1]
SIZE = (128, 96)
TRAIN_IMAGES = 8


def forget_instances() -> None:
    """Empty what mmengine keeps by name for a whole process: scopes, visualizers, message hubs."""
    kinds = [DefaultScope, MessageHub, Visualizer]
    for kind in kinds:  # grows: every subclass has a dictionary of its own
        kind._instance_dict.clear()
        kinds.extend(kind.__subclasses__())


def draw_shapes(out: Path) -> Path:
    """Draw the small data set of the tests: 8 + 4 images of 128x96."""
    command = [sys.executable, ROOT / 'tools/prepare_data.py', 'shapes', '--out', out]
    command += ['--train', TRAIN_IMAGES, '--val', 4, '--size', '{}x{}'.format(*SIZE), '--semantic']
    subprocess.run([str(c) for c in command], check=True, capture_output=True)
    return out


def coco_dataset(root: Path, split: str, train: bool, masks: bool = False) -> dict:
    """The config of one split, with random flips when it is for training."""
    load = dict(type='LoadAnnotations', with_bbox=True, with_mask=masks)
    steps = [
        dict(type='LoadImageFromFile'),
        load,
        dict(type='Resize', scale=SIZE, keep_ratio=False),
    ]
    steps += [dict(type='RandomFlip', prob=0.5)] if train else []
    return dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file=f'annotations/instances_{split}.json',
        data_prefix=dict(img=f'{split}/'),
        metainfo=dict(classes=('circle', 'square', 'triangle', 'star', 'cross', 'heart')),
        test_mode=not train,
        pipeline=[*steps, dict(type='PackDetInputs')],
    )


def detection_run(
    model: dict, root: Path, work_dir: Path, hooks: Optional[List[dict]] = None, **overrides
) -> Config:
    """A whole config: two epochs of two iterations, batch 4, SGD, a checkpoint every epoch."""
    cfg = Config(
        dict(
            default_scope='mmdet',
            model=model,
            work_dir=str(work_dir),
            train_dataloader=dict(
                batch_size=4,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=True),
                dataset=coco_dataset(root, 'train', train=True),
            ),
            train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=2),
            optim_wrapper=dict(
                type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9)
            ),
            param_scheduler=[dict(type='MultiStepLR', milestones=[1], gamma=0.1)],
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1),
                checkpoint=dict(type='CheckpointHook', interval=1),
            ),
            custom_hooks=[dict(type='mmextra.SeedEachEpochHook'), *(hooks or [])],
            log_level='WARNING',
            randomness=dict(seed=0),
        )
    )
    cfg.merge_from_dict(overrides)
    return cfg


_RUNS = 0


def train(cfg: Config) -> Runner:
    """Run the stock runner on a copy of the config."""
    global _RUNS
    _RUNS += 1
    cfg = copy.deepcopy(cfg)
    cfg.experiment_name = f'test-{_RUNS}'
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def weights(model: torch.nn.Module) -> dict:
    """A copy of the state dict."""
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_equal_weights(a: dict, b: dict) -> None:
    """Same keys, same bits."""
    assert a.keys() == b.keys()
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert not different, f'{len(different)} of {len(a)} tensors differ, first {different[0]}'


def losses_of(runner: Runner) -> dict:
    """The logged value of every loss in every iteration."""
    scalars = runner.message_hub.log_scalars
    return {k.removeprefix('train/'): list(v.data[0]) for k, v in scalars.items() if 'loss' in k}


def small_gfl(width: int = 8, **head) -> dict:
    """The GFL of configs/_base_/models/gfl_small.py, smaller still."""
    model = Config.fromfile(ROOT / 'configs/_base_/models/gfl_small.py').model.to_dict()
    model['backbone']['base_channels'] = width
    model['neck'].update(in_channels=[2 * width, 4 * width, 8 * width], out_channels=32)
    model['bbox_head'].update(in_channels=32, feat_channels=32, stacked_convs=1, **head)
    return model
