"""Test a checkpoint from a config of mmextra, mmdet, mmseg, mmpretrain or mmengine alone.

The options are the host packages' own; the work is the stock runner's.
"""

from copy import deepcopy
from pathlib import Path

import mmengine
from _cli import build_runner, load_config, parser
from mmengine.config import ConfigDict
from mmengine.dist import is_main_process
from mmengine.evaluator import DumpResults

import mmextra.registry  # noqa: F401  for `mmextra::` bases and safe loading
from mmextra.engine.dist import cpu_process_group

PICKLES = ('.pkl', '.pickle')


def parse_args(argv=None):
    cli = parser('Test (and evaluate) a model')
    cli.add_argument('checkpoint', help='checkpoint file')
    cli.add_argument(
        '--out',
        help='dump the predictions to a .pkl file (with mmseg: or, as images, to a folder); '
        'with --out-item metrics, the metrics to a .json, .yml or .pkl file',
    )
    cli.add_argument(
        '--out-item', choices=['pred', 'metrics'], default='pred', help='what --out holds'
    )
    cli.add_argument('--amp', action='store_true', help='test with automatic mixed precision')
    cli.add_argument('--show', action='store_true', help='show the predictions in a window')
    cli.add_argument(
        '--show-dir', help='folder, in the work dir, where images with predictions are saved'
    )
    cli.add_argument(
        '--wait-time', type=float, default=2, help='seconds that a window stays (default: 2)'
    )
    cli.add_argument(
        '--interval', type=int, help='show one sample out of so many (default: that of the config)'
    )
    cli.add_argument('--tta', action='store_true', help='test-time augmentation')
    args = cli.parse_args(argv)
    if args.out_item == 'metrics' and args.out is None:
        cli.error('--out-item metrics needs --out FILE')
    return args


def show(cfg, args) -> None:
    """Switch the host's visualisation hook on, in the host's own words."""
    if 'visualization' not in cfg.get('default_hooks', {}):
        raise ValueError(
            '--show and --show-dir need a `visualization` entry in default_hooks of the config'
        )
    hook = cfg.default_hooks.visualization
    scope = cfg.get('default_scope')
    hook['enable' if scope == 'mmpretrain' else 'draw'] = True
    if args.show:
        hook.update(show=True, wait_time=args.wait_time)
    if args.interval:
        hook.interval = args.interval
    if args.show_dir and scope == 'mmseg':
        cfg.visualizer.save_dir = args.show_dir
    elif args.show_dir:
        hook['out_dir' if scope == 'mmpretrain' else 'test_out_dir'] = args.show_dir


def augment_tests(cfg) -> None:
    """Wrap model and pipeline for test-time augmentation: the config's own, or the host's flip."""
    scope = cfg.get('default_scope')
    datasets = list(plain_datasets(cfg.test_dataloader.dataset))
    if 'tta_model' not in cfg and scope == 'mmdet':
        nms = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
        cfg.tta_model = dict(type='DetTTAModel', tta_cfg=nms)
    elif 'tta_model' not in cfg and scope == 'mmpretrain':
        cfg.tta_model = dict(type='AverageClsScoreTTA')
    own = 'tta_pipeline' not in cfg and scope in ('mmdet', 'mmpretrain')
    absent = [key for key in ('tta_model', 'tta_pipeline') if key not in cfg]
    if absent and not own:
        raise ValueError(f'--tta needs {" and ".join(absent)} in the config')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    for dataset in datasets:
        dataset.pipeline = flip_pipeline(dataset.pipeline, scope) if own else cfg.tta_pipeline


def plain_datasets(dataset):
    """The data sets within wrappers and concatenations."""
    if 'datasets' in dataset:
        for part in dataset.datasets:
            yield from plain_datasets(part)
    elif 'dataset' in dataset:
        yield from plain_datasets(dataset.dataset)
    else:
        yield dataset


def flip_pipeline(pipeline: list, scope: str) -> list:
    """A test pipeline that gives each image twice, mirrored and as it is."""
    pack = deepcopy(pipeline[-1])
    if scope == 'mmdet':
        # To turn the boxes back, the model must know how each view was flipped.
        shapes = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
        pack.meta_keys = (*pack.get('meta_keys', shapes), 'flip', 'flip_direction')
    flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
    return [*deepcopy(pipeline[:-1]), dict(type='TestTimeAug', transforms=[flips, [pack]])]


def dumper(cfg, out: str):
    """The metric that writes the predictions to a file."""
    if cfg.get('default_scope') == 'mmdet':
        from mmdet.evaluation import DumpDetResults

        return DumpDetResults(out_file_path=out)
    return DumpResults(out_file_path=out)


def main(argv=None):
    args = parse_args(argv)
    cfg = load_config(args)
    cfg.load_from = args.checkpoint
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir:
        show(cfg, args)
    if args.tta:
        augment_tests(cfg)
    predictions = args.out if args.out_item == 'pred' else None
    if predictions and not predictions.endswith(PICKLES):
        if cfg.get('default_scope') != 'mmseg':
            raise ValueError(f'--out takes a file that ends in .pkl, not {predictions!r}')
        evaluators = cfg.test_evaluator
        first = evaluators[0] if isinstance(evaluators, (list, tuple)) else evaluators
        first.output_dir = predictions
    with cpu_process_group(cfg):
        runner = build_runner(cfg)
        if predictions and predictions.endswith(PICKLES):
            runner.test_evaluator.metrics.append(dumper(cfg, predictions))
        metrics = runner.test()
        if args.out_item == 'metrics' and is_main_process():
            Path(args.out).parent.mkdir(parents=True, exist_ok=True)
            mmengine.dump(metrics, args.out)


if __name__ == '__main__':
    main()
