"""Time the modules of papers beside their yardsticks, and write the table of docs/benchmarks.md.

    python tools/benchmark/run.py                    # every paper, on the CPU
    python tools/benchmark/run.py --paper volo kvt   # these; the others keep their sections

A paper's file ``tools/benchmark/PAPER.py`` has a function ``cases(device)`` that returns a list of
``benchmark_case.Case``.
"""

import argparse
import gc
import importlib.util
import logging
import math
import os
import platform
import re
import statistics
import sys
import time
import traceback
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional

os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # the profiler says nothing that matters here

import torch
from benchmark_case import Build, Case
from torch import Tensor

HERE = Path(__file__).resolve().parent
INTRO = """# Benchmarks

Written by `python tools/benchmark/run.py`. Each module stands beside its yardstick; all modules of a case
are timed in turn in one process. A time is the median over the runs, in milliseconds, with the fastest and
the slowest run in brackets. *Forward* is in eval mode without gradients, *step* is forward and backward in
train mode. Memory is what the one or the other needs at its peak beyond the module and its inputs, in MiB.
"""
# A short function is called as often in one run as it takes to fill this many seconds.
RUN_SECONDS = 0.05
PACKAGES = ('mmextra', 'mmengine', 'mmcv', 'mmdet', 'mmsegmentation', 'mmpretrain', 'timm')


class Candidate:
    """One module of a case, ready to be measured.

    Args:
        label (str): What it is called in the table.
        build (Callable): Builds the module and its inputs.
        device (torch.device): Where they live.
    """

    def __init__(self, label: str, build: Build, device: torch.device) -> None:
        torch.manual_seed(0)
        self.label, self.device = label, device
        self.module, self.inputs = build()
        self.parameters = sum(p.numel() for p in self.module.parameters())

    def forward(self) -> None:
        """Eval mode, no gradients."""
        with torch.no_grad():
            self.module(*self.inputs)

    def step(self) -> None:
        """Forward and backward in train mode."""
        self.module.zero_grad(set_to_none=True)
        sum(out.float().mean() for out in tensors(self.module(*self.inputs))).backward()

    def time(self, action: Callable[[], None], calls: int) -> float:
        """Milliseconds for one call."""
        self._wait()
        start = time.perf_counter()
        for _ in range(calls):
            action()
        self._wait()
        return (time.perf_counter() - start) / calls * 1e3

    def _wait(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)

    def memory(self, action: Callable[[], None]) -> float:
        """MiB at the peak of one call, beyond what the module and its inputs hold."""
        self.module.zero_grad(set_to_none=True)
        if self.device.type == 'cuda':
            gc.collect()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            action()
            return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20
        return cpu_peak(action) / 2**20


def tensors(outputs) -> Iterator[Tensor]:
    """The tensors of an output that have a gradient, however they are nested."""
    if isinstance(outputs, Tensor):
        if outputs.requires_grad:
            yield outputs
    elif isinstance(outputs, dict):
        yield from tensors(tuple(outputs.values()))
    elif isinstance(outputs, (tuple, list)):
        for part in outputs:
            yield from tensors(part)


def cpu_peak(action: Callable[[], None]) -> int:
    """Bytes of tensors alive at the peak of a call, from torch's record of its allocations."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        action()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == '[memory]']
    alive = peak = 0
    for event in sorted(
        events, key=lambda e: e.start_ns() if hasattr(e, 'start_ns') else e.start_us()
    ):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


@dataclass
class Row:
    """What was measured of one candidate: times in ms, one for each run, and peaks in MiB."""

    label: str
    parameters: int
    forward: List[float] = field(default_factory=list)
    step: List[float] = field(default_factory=list)
    forward_memory: float = math.nan
    step_memory: float = math.nan


def measure(case: Case, device: torch.device, runs: int) -> List[Row]:
    """Measure one case.

    Args:
        case (Case): What to build.
        device (torch.device): Where.
        runs (int): How often each candidate is timed; they take turns.

    Returns:
        list[Row]: Ours, the yardstick and, where there is one, the reference.
    """
    builds = [('ours', case.ours), (case.yardstick_name, case.yardstick)]
    if case.reference is not None:
        builds.append((case.reference_name, case.reference))
    candidates = [Candidate(label, build, device) for label, build in builds]
    rows = [Row(c.label, c.parameters) for c in candidates]
    for kind in ('forward', 'step') if case.backward else ('forward',):
        calls = []
        for candidate, row in zip(candidates, rows):
            candidate.module.train(kind == 'step')
            action = getattr(candidate, kind)
            action()  # the first call allocates, tunes and compiles
            once = candidate.time(action, 1) / 1e3
            calls.append(max(1, math.ceil(RUN_SECONDS / max(once, 1e-9))))
            if case.memory:
                setattr(row, f'{kind}_memory', candidate.memory(action))
        for _ in range(runs):
            for candidate, row, number in zip(candidates, rows, calls):
                getattr(row, kind).append(candidate.time(getattr(candidate, kind), number))
    return rows


def spread(times: List[float]) -> str:
    """``median (fastest-slowest)``."""
    if not times:
        return ''
    middle, low, high = statistics.median(times), min(times), max(times)
    digits = max(0, 2 - math.floor(math.log10(max(middle, 1e-3))))
    return f'{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})'


def amount(value: float) -> str:
    """MiB, with one digit behind the point below ten; nothing where nothing was measured."""
    return '' if math.isnan(value) else f'{value:.1f}' if value < 10 else f'{value:.0f}'


def table(measured: Dict[str, List[Row]]) -> str:
    """The Markdown table of one paper: case -> rows."""
    lines = [
        '| Case | Module | Parameters | Forward | Step | Forward memory | Step memory |',
        '| --- | --- | ---: | ---: | ---: | ---: | ---: |',
    ]
    for case, rows in measured.items():
        for row in rows:
            cells = [
                case if row is rows[0] else '',
                row.label,
                f'{row.parameters / 1e6:.2f} M',
                spread(row.forward),
                spread(row.step),
                amount(row.forward_memory),
                amount(row.step_memory),
            ]
            lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def machine(device: torch.device, runs: int) -> str:
    """One paragraph: what it was measured on, and with which versions."""
    parts = [f'{cpu_model()}, {os.cpu_count()} cores']
    if device.type == 'cuda':
        parts[0] = f'{torch.cuda.get_device_name(device)} ({parts[0]})'
    parts.append(f'{torch.get_num_threads()} threads, {runs} runs')
    versions = [f'Python {platform.python_version()}', f'torch {torch.__version__}']
    for package in PACKAGES:
        version = installed_version(package)
        versions += [f'{package} {version}'] if version else []
    return f'{"; ".join(parts)}. {", ".join(versions)}.'


def cpu_model() -> str:
    """The processor as Linux names it."""
    try:
        found = re.search(r'^model name\s*: (.*)$', Path('/proc/cpuinfo').read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def installed_version(package: str) -> Optional[str]:
    """The version of a package, or of the maintained fork's package of that name."""
    for name in (package, f'onedl-{package.replace("mmdet", "mmdetection")}'):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def merge(text: str, sections: Dict[str, str]) -> str:
    """The page with the sections of some papers replaced; the other papers keep theirs."""
    old = re.split(r'^## (\S+)\n', text, flags=re.MULTILINE)[1:]
    merged = {name: body.strip() for name, body in zip(old[::2], old[1::2])}
    merged.update(sections)
    return '\n'.join([INTRO, *(f'## {name}\n\n{merged[name]}\n' for name in sorted(merged))])


def load_cases(path: Path, device: torch.device) -> List[Case]:
    """The cases of one paper's file.

    Raises:
        ValueError: If the file has no function ``cases``.
    """
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location(f'benchmark_{path.stem}', path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    if not hasattr(module, 'cases'):
        raise ValueError(f'{path} has no function `cases(device)`')
    return module.cases(device)


def find_papers(folder: Path) -> Dict[str, Path]:
    """Paper -> file, of all benchmark files in a folder."""
    own = {'run', 'benchmark_case'}
    files = sorted(p for p in folder.glob('*.py') if p.stem not in own)
    return {p.stem: p for p in files if re.search(r'^def cases\(', p.read_text(), re.MULTILINE)}


def main(argv=None, folder: Path = HERE) -> int:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument('--paper', nargs='+', metavar='NAME', help='papers to measure (default: all)')
    cli.add_argument('--device', type=torch.device, default='cpu', help='default: cpu')
    cli.add_argument('--runs', type=int, default=5, help='how often each is timed (default: 5)')
    cli.add_argument('--threads', type=int, default=1, help='threads of torch (default: 1)')
    cli.add_argument(
        '--out', type=Path, default=HERE.parents[1] / 'docs' / 'benchmarks.md', help='page to write'
    )
    args = cli.parse_args(argv)
    papers = find_papers(folder)
    unknown = set(args.paper or ()) - set(papers)
    if unknown:
        cli.error(f'no benchmark of {", ".join(sorted(unknown))}; there are: {", ".join(papers)}')
    torch.set_num_threads(args.threads)
    sections, failed = {}, []
    for paper in args.paper or papers:
        measured = {}
        try:
            for case in load_cases(papers[paper], args.device):
                with (
                    torch.cuda.device(args.device) if args.device.type == 'cuda' else nullcontext()
                ):
                    measured[case.name] = measure(case, args.device, args.runs)
                gc.collect()
        except Exception:  # one paper's trouble must not cost the others their figures
            traceback.print_exc()
            failed.append(paper)
            continue
        found = table(measured)
        print(f'{paper}\n{found}\n', flush=True)
        sections[paper] = f'{machine(args.device, args.runs)}\n\n{found}'
    before = args.out.read_text('utf-8') if args.out.is_file() else ''
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(merge(before, sections), 'utf-8')
    if failed:
        print(f'not measured: {", ".join(failed)}', file=sys.stderr)
    return int(bool(failed))


if __name__ == '__main__':
    logging.disable(logging.INFO)  # what mmengine tells of every parameter that it initialises
    sys.exit(main())
