"""A small drawn oriented set, and a small O2DETR to train on it."""

import subprocess
import sys
from functools import cache
from pathlib import Path

from mmengine.config import Config

ROOT = Path(__file__).parents[1]
SIZE = (64, 64)


@cache
def draw_rectangles(out: Path) -> Path:
    """Draw 8 + 4 images of 64x64, as `tools/prepare_data.py rotated-rectangles` writes them."""
    command = [sys.executable, ROOT / 'tools/prepare_data.py', 'rotated-rectangles', '--out', out]
    command += ['--train', 8, '--val', 4, '--size', '{}x{}'.format(*SIZE)]
    subprocess.run([str(c) for c in command], check=True, capture_output=True)
    return out


def oriented_dataset(root: Path, split: str, train: bool) -> dict:
    """The config of one split, with random flips when it is for training."""
    load = dict(type='LoadAnnotations', with_bbox=True, box_type='obox')
    steps = [load, dict(type='RandomFlip', prob=0.5)] if train else [load]
    return dict(
        type='mmextra.OrientedDOTADataset',
        data_root=str(root),
        ann_file=f'{split}/annfiles/',
        data_prefix=dict(img_path=f'{split}/images/'),
        metainfo=dict(classes=('orange', 'blue')),
        test_mode=not train,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=SIZE, keep_ratio=True),
            *steps,
            dict(
                type='PackDetInputs',
                meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
            ),
        ],
    )


def oriented_run(model: dict, root: Path, work_dir: Path) -> Config:
    """A whole config: two epochs of two iterations, batch 4, a checkpoint every epoch, a validation
    at the end."""
    return Config(
        dict(
            default_scope='mmdet',
            model=model,
            work_dir=str(work_dir),
            train_dataloader=dict(
                batch_size=4,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=True),
                dataset=oriented_dataset(root, 'train', train=True),
            ),
            val_dataloader=dict(
                batch_size=2,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=oriented_dataset(root, 'val', train=False),
            ),
            val_evaluator=dict(type='mmextra.OrientedDOTAMetric'),
            val_cfg=dict(),
            train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=2),
            optim_wrapper=dict(
                type='OptimWrapper',
                optimizer=dict(type='AdamW', lr=1e-3),
                clip_grad=dict(max_norm=0.1, norm_type=2),
            ),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1),
                checkpoint=dict(type='CheckpointHook', interval=1),
            ),
            custom_hooks=[dict(type='mmextra.SeedEachEpochHook')],
            log_level='WARNING',
            randomness=dict(seed=0),
        )
    )
