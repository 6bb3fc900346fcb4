"""Train from a config of mmextra, mmdet, mmseg, mmpretrain or mmengine alone.

The options are the host packages' own; the work is the stock runner's.
"""

from _cli import build_runner, load_config, parser
from mmengine.runner import find_latest_checkpoint

import mmextra.registry  # noqa: F401  for `mmextra::` bases and safe resuming
from mmextra.engine.dist import cpu_process_group


def parse_args(argv=None):
    cli = parser('Train a model')
    cli.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    cli.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the batch size over auto_scale_lr.base_batch_size',
    )
    cli.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from a checkpoint; without a path, from the latest one in the work dir, if any',
    )
    cli.add_argument('--no-validate', action='store_true', help='do not evaluate during training')
    cli.add_argument(
        '--no-persistent-workers',
        action='store_true',
        help='switch persistent_workers off in all dataloaders',
    )
    return cli.parse_args(argv)


def merge_args(cfg, args):
    """Write the training options into the config."""
    if args.amp:
        wrapper = cfg.optim_wrapper
        if wrapper.get('type', 'OptimWrapper') not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise ValueError(
                f'--amp replaces an OptimWrapper, but the config has a {wrapper.type}: '
                'set optim_wrapper yourself'
            )
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise ValueError(
                '--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=...) in the config'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume == 'auto':
        # A run that was stopped before its first checkpoint starts anew: from `load_from`, if there is one.
        cfg.resume = find_latest_checkpoint(cfg.work_dir) is not None
        if cfg.resume:
            cfg.load_from = None
    elif args.resume is not None:
        cfg.resume, cfg.load_from = True, args.resume
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.no_persistent_workers:
        for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            if cfg.get(name):
                cfg[name].persistent_workers = False
    return cfg


def main(argv=None):
    args = parse_args(argv)
    cfg = merge_args(load_config(args), args)
    with cpu_process_group(cfg):
        build_runner(cfg).train()


if __name__ == '__main__':
    main()
