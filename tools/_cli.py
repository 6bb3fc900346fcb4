"""What ``train.py`` and ``test.py`` have in common."""

import argparse
import os
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that training and testing share; the host packages' own names."""
    cli = argparse.ArgumentParser(description=description)
    cli.add_argument('config', help='config file')
    cli.add_argument(
        '--work-dir', help='folder for logs, checkpoints and metrics (default: work_dirs/CONFIG)'
    )
    cli.add_argument(
        '--no-pin-memory', action='store_true', help='switch pin_memory off in all dataloaders'
    )
    cli.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='settings that override those of the config, as optim_wrapper.optimizer.lr=0.01; '
        'a list is key="[a,b]" or key=a,b, a nested one key="[(a,b),(c,d)]"; no white space',
    )
    cli.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher',
    )
    # torch.distributed.launch passes one of the two, by its version; torchrun sets LOCAL_RANK.
    cli.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return cli


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and merge what the command line says, for training and testing alike."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(args.config).stem))
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if not loader:
            continue
        if cfg.get('default_scope') == 'mmpretrain':
            # mmpretrain's tools add these, and its configs count on it.
            loader.setdefault('collate_fn', dict(type='default_collate'))
            loader.setdefault('pin_memory', torch.cuda.is_available())
            loader.setdefault('persistent_workers', loader.get('num_workers', 0) > 0)
        if args.no_pin_memory:
            loader['pin_memory'] = False
    return cfg


def build_runner(cfg: Config):
    """The stock runner, or the one that ``runner_type`` asks for."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
