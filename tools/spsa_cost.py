"""Time SPSA and the host's attention on square maps of growing size, and plot both curves.

    python tools/spsa_cost.py --out work_dirs/spsa_cost

CPU time of the forward pass of one map with 96 channels and 4 heads, on one thread: the median of the calls that fit
into a second, at least one. Writes `table.md` and `plot.svg`. The largest map takes attention half a minute or more.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Dict, Sequence

import torch
from mmpretrain.models.utils import MultiheadAttention
from torch import nn

from mmextra.backbones.spsa import SPSA

CHANNELS, HEADS = 96, 4


def milliseconds(layer: nn.Module, side: int, seconds: float) -> float:
    """Median CPU time of a call on a map of so many rows and columns; calls go on for so many seconds."""
    tokens, times = torch.randn(1, side * side, CHANNELS), []
    while sum(times) < seconds or not times:
        begin = time.process_time()
        layer(tokens)
        times.append(time.process_time() - begin)
    return statistics.median(times) * 1e3


def crossover(times: Dict[str, Sequence[float]], sides: Sequence[int]) -> str:
    """From which side on the first of the layers is always the faster one."""
    ours, other = times.values()
    since = None
    for side, a, b in zip(sides, ours, other):
        since = (since or side) if a < b else None
    return f'{next(iter(times))} is faster from {since}x{since} on' if since else 'no cross-over'


def table(times: Dict[str, Sequence[float]], sides: Sequence[int]) -> str:
    """A row for each size: milliseconds of both, and their quotient."""
    ours, other = times
    lines = [
        f'| map | {ours}, ms | {other}, ms | {other} / {ours} |',
        '| --- | ---: | ---: | ---: |',
    ]
    for side, a, b in zip(sides, *times.values()):
        lines.append(f'| {side}x{side} | {a:.3g} | {b:.3g} | {b / a:.3g} |')
    return '\n'.join(lines)


def plot(times: Dict[str, Sequence[float]], sides: Sequence[int], path: Path) -> None:
    """Both curves, on logarithmic axes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.2), layout='constrained')
    panel = figure.subplots()
    for (name, values), colour in zip(times.items(), ('#1f4e79', '#c0504d')):
        panel.loglog(sides, values, marker='o', markersize=4, color=colour, label=name)
    panel.set_xticks(sides, [f'{side}²' for side in sides])
    panel.set_xticks([], minor=True)
    panel.set_xlabel('positions', fontsize=9)
    panel.set_ylabel('ms, forward, one thread', fontsize=9)
    panel.tick_params(labelsize=8)
    panel.spines[['top', 'right']].set_visible(False)
    panel.legend(frameon=False, fontsize=8)
    with rc_context({'svg.fonttype': 'none'}):  # text stays text
        figure.savefig(path, facecolor='white', metadata=dict(Date=None))


def parse_args(argv=None) -> argparse.Namespace:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument('--sides', nargs='+', type=int, default=[4, 8, 16, 32, 64, 128, 256])
    cli.add_argument('--seconds', type=float, default=1.0, help='for each size and layer')
    cli.add_argument('--out', type=Path, default=Path('work_dirs/spsa_cost'))
    return cli.parse_args(argv)


def main(argv=None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(1)
    layers = {
        'SPSA': SPSA(num_heads=HEADS).eval(),
        'attention': MultiheadAttention(CHANNELS, HEADS).eval(),
    }
    sides, times = sorted(args.sides), {name: [] for name in layers}
    with torch.no_grad():
        for side in sides:
            for name, layer in layers.items():
                times[name].append(milliseconds(layer, side, args.seconds))
    text = f'{table(times, sides)}\n\n{crossover(times, sides)}.'
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / 'table.md').write_text(text + '\n')
    plot(times, sides, args.out / 'plot.svg')
    print(text)


if __name__ == '__main__':
    main()
