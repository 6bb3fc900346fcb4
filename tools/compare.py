"""Train several configs over several seeds and put their figures side by side.

    python tools/compare.py configs/dsig/faster-rcnn-plain_bccd_demo.py configs/dsig/dsig_faster-rcnn_bccd_demo.py \
        --before configs/dsig/faster-rcnn-teacher_bccd_demo.py --seeds 0 1 2 --metrics coco/bbox_mAP_50

Trains through `mim train`. What stands under `--before` is trained once, with seed 0, to
work_dirs/CONFIG, where demo configs look for their teacher. A finished run is not repeated. Writes
`table.md`, `plot.svg` and `runs.json` to the output folder: the mean over the seeds ± their standard deviation.

A metric is that of the last validation, `METRIC@EPOCH` that of another one. With `--grid KEY=VALUE,VALUE` every config
is trained with each of the values: `METRIC@VALUE`, `METRIC@lowest` and `METRIC@highest`. `--curve METRIC` draws
METRIC_1, METRIC_2 and so on as a curve, into `curve.svg`.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, Sequence

ROOT = Path(__file__).resolve().parents[1]
OWN = ('seconds', 'minutes')  # figures of every run, beside its metrics


def call(command: List, **environment) -> None:
    """Run a command; its output goes to the terminal only if it fails."""
    command = [str(part) for part in command]
    env = {**os.environ, 'PYTHONWARNINGS': 'ignore', **environment}
    done = subprocess.run(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f'{done.stdout[-4000:]}\nfailed: {" ".join(command)}')


def logged(work_dir: Path) -> List[dict]:
    """The lines that the latest run in the folder logged."""
    log = sorted(work_dir.glob('*/vis_data/scalars.json'))[-1]
    return [json.loads(line) for line in log.read_text().splitlines()]


def seconds_per_iteration(work_dir: Path) -> float:
    """Median time of a training iteration, from the run's own log."""
    return statistics.median(line['time'] for line in logged(work_dir) if 'loss' in line)


def metrics(work_dir: Path) -> Dict[str, float]:
    """What the last validation gave, and each one as `METRIC@STEP`; nothing for a run without one."""
    last, each = {}, {}
    for line in logged(work_dir):
        if 'loss' not in line:
            last = {k: v for k, v in line.items() if k not in ('step', 'time', 'data_time')}
            each.update({f'{k}@{line["step"]}': v for k, v in last.items()})
    return {**last, **each}


def train(config: Path, work_dir: Path, seed: int, options: Sequence[str] = ()) -> dict:
    """Train through mim, unless it was done before, and return the figures."""
    done, how = work_dir / 'figures.json', work_dir / 'options.json'
    options = [f'randomness.seed={seed}', *(o.replace('{seed}', str(seed)) for o in options)]
    if done.is_file() and how.is_file() and json.loads(how.read_text()) != options:
        sys.exit(
            f'{work_dir} was trained with {" ".join(json.loads(how.read_text()))}, not with {" ".join(options)}: '
            'name another --out, or remove the folder'
        )
    if not done.is_file():
        print(f'training {config.stem} (seed {seed})', flush=True)
        begin = time.time()
        call(['mim', 'train', 'mmextra', config, '--work-dir', work_dir, '--cfg-options', *options])
        figures = dict(
            metrics(work_dir),
            seconds=seconds_per_iteration(work_dir),
            minutes=(time.time() - begin) / 60,
        )
        how.write_text(json.dumps(options))
        done.write_text(json.dumps(figures))
    return json.loads(done.read_text())


def train_grid(config: Path, work_dir: Path, seed: int, options: Sequence[str], grid: str) -> dict:
    """Train with each value of an option; return the figures of all, and the extremes among them."""
    key, _, values = grid.partition('=')
    found = {}
    for value in values.split(','):
        own_dir = work_dir.with_name(f'{work_dir.name}_{key.rpartition(".")[2]}-{value}')
        found[value] = train(config, own_dir, seed, [*options, f'{key}={value}'])
    figures = {f'{k}@{value}': v for value, run in found.items() for k, v in run.items()}
    for k in next(iter(found.values())):
        every = [run[k] for run in found.values()]
        figures.update({f'{k}@lowest': min(every), f'{k}@highest': max(every)})
        if k in OWN:
            figures[k] = statistics.mean(every)
    return figures


def plot(
    runs: Dict[str, List[dict]],
    columns: Sequence[str],
    names: Sequence[str],
    percent: bool,
    path: Path,
) -> None:
    """A panel of bars for each column: mean over the seeds, spread, and each seed as a dot."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.6 + 2.4 * len(columns), 0.8 + 0.3 * len(runs)), layout='constrained')
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for panel, column in zip(panels, columns):
        for row, figures in enumerate(runs.values()):
            values = [f[column] * (100 if percent else 1) for f in figures if column in f]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else 0
                panel.barh(
                    row,
                    statistics.mean(values),
                    xerr=spread,
                    height=0.7,
                    color='#9db8d9',
                    capsize=2,
                )
                panel.scatter(values, [row] * len(values), s=8, color='#1f4e79', zorder=3)
        panel.set_title(column, fontsize=9)
        panel.tick_params(labelsize=8)
        panel.spines[['top', 'right']].set_visible(False)
    panels[0].set_yticks(range(len(runs)), names)
    panels[0].invert_yaxis()  # the first config on top
    with rc_context({'svg.fonttype': 'none'}):  # text stays text
        figure.savefig(path, facecolor='white', metadata=dict(Date=None))


def curve(runs: Dict[str, List[dict]], metric: str, names: Sequence[str], path: Path) -> None:
    """A line for each config through `METRIC_1`, `METRIC_2`, ...: mean over the seeds, and their range.

    Raises:
        ValueError: If no run has such metrics.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 2.8), layout='constrained')
    panel = figure.subplots()
    for name, figures in zip(names, runs.values()):
        length = len([k for k in figures[0] if re.fullmatch(rf'{re.escape(metric)}_\d+', k)])
        if not length:
            raise ValueError(f'--curve {metric}: the runs have no {metric}_1, {metric}_2, ...')
        places = range(1, length + 1)
        values = [[f[f'{metric}_{i}'] for f in figures] for i in places]
        panel.plot(
            places, [statistics.mean(v) for v in values], marker='o', markersize=3, label=name
        )
        panel.fill_between(places, [min(v) for v in values], [max(v) for v in values], alpha=0.2)
    panel.set_title(metric, fontsize=9)
    panel.tick_params(labelsize=8)
    panel.spines[['top', 'right']].set_visible(False)
    panel.legend(frameon=False, fontsize=8)
    with rc_context({'svg.fonttype': 'none'}):  # text stays text
        figure.savefig(path, facecolor='white', metadata=dict(Date=None))


def table(runs: Dict[str, List[dict]], columns: Sequence[str], percent: bool) -> str:
    """A row for each config: mean over seeds, and the spread where there is more than one.

    Shares, of which none is larger than 1, have three digits.
    """

    def values_of(figures: List[dict], key: str) -> List[float]:
        scale = 100 if percent and key not in OWN else 1
        return [f[key] * scale for f in figures if key in f]

    def digits_of(key: str) -> int:
        every = [abs(v) for figures in runs.values() for v in values_of(figures, key)]
        shares = key not in OWN and every and max(every) <= 1 and any(v % 1 for v in every)
        return 3 if shares or key == 'seconds' else 1

    def cell(figures: List[dict], key: str) -> str:
        values, digits = values_of(figures, key), digits_of(key)
        if not values:
            return '-'
        spread = ''
        if len(values) > 1 and key not in OWN:
            spread = f' ± {statistics.stdev(values):.{digits}f}'
        return f'{statistics.mean(values):.{digits}f}{spread}'

    titles = [*columns, 'train s/iter', 'minutes a run']
    columns = [*columns, *OWN]
    lines = ['| run | ' + ' | '.join(titles) + ' |', '| --- ' * (len(titles) + 1) + '|']
    for name, figures in runs.items():
        lines.append(f'| {name} | ' + ' | '.join(cell(figures, c) for c in columns) + ' |')
    return '\n'.join(lines)


def default_columns(figures: dict) -> List[str]:
    """The metrics of the last validation, of which one may have an `@` in its own name: recall@20."""
    return [k for k in figures if k not in OWN and k.rpartition('@')[0] not in figures]


def parse_args(argv=None) -> argparse.Namespace:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument('configs', nargs='+', type=Path, help='configs to compare')
    cli.add_argument('--before', nargs='+', type=Path, default=[], help='trained once, first')
    cli.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    cli.add_argument('--metrics', nargs='+', default=None, help='columns; default: all logged')
    cli.add_argument('--names', nargs='+', default=None, help='of the bars; default: the configs')
    cli.add_argument('--percent', action='store_true', help='multiply the metrics by 100')
    cli.add_argument('--out', type=Path, default=Path('work_dirs/compare'))
    cli.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='for the configs compared; {seed} is filled in',
    )
    cli.add_argument(
        '--grid', metavar='KEY=VALUE,VALUE', help='an option, and values to train with'
    )
    cli.add_argument('--curve', metavar='METRIC', help='METRIC_1, METRIC_2, ... as a curve')
    args = cli.parse_args(argv)
    if args.grid and '=' not in args.grid:
        cli.error(f'--grid: must be KEY=VALUE,VALUE, got {args.grid}')
    if args.grid and not args.metrics:
        cli.error('--grid: say with --metrics which columns the table has, as METRIC@VALUE')
    if args.names and len(args.names) != len(args.configs):
        cli.error(f'--names: {len(args.configs)} are needed, one for each config, got {args.names}')
    return args


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for config in args.before:
        train(config, Path('work_dirs') / config.stem, 0)
    runs = {config.stem: [] for config in args.configs}
    for seed in args.seeds:  # seed by seed, so that an interrupted comparison is fair
        for config in args.configs:
            run = [config, args.out / f'{config.stem}_seed{seed}', seed, args.cfg_options]
            runs[config.stem].append(train_grid(*run, args.grid) if args.grid else train(*run))
    first = next(iter(runs.values()))[0]
    columns = args.metrics or default_columns(first)
    text = table(runs, columns, args.percent)
    (args.out / 'runs.json').write_text(json.dumps(runs, indent=1))
    (args.out / 'table.md').write_text(text + '\n')
    names = args.names or list(runs)
    if columns:
        plot(runs, columns, names, args.percent, args.out / 'plot.svg')
    if args.curve:
        curve(runs, args.curve, names, args.out / 'curve.svg')
    print(text)


if __name__ == '__main__':
    main()
