"""Kill trainings at every kind of moment, resume them, and compare the end with that of an unbroken run.

    python tools/stress/resume.py                       # all cases, 20 kills each
    python tools/stress/resume.py --case distill --kills 40 --seed 1
    python tools/stress/resume.py --checkpoint-hook CheckpointHook    # mmengine's own: runs are lost

Each case is a demonstration of ``configs/`` made smaller, on drawn data. It is trained by ``tools/train.py``, killed,
and started again with ``--resume``, until all kills are used up and the last run has come to its end. After each kill
``last_checkpoint`` has to name a whole checkpoint, no older than the one before; each resumed process has to go on from
there; and in the end all weights and the states of optimizers and schedulers have to be those of the unbroken run, bit
for bit, and nothing may be left over. A table is printed; the exit status is 1 if any of this fails.

Processes are forked from this one, which has imported everything: starting Python anew would take most of the time.
"""

import argparse
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

# Bit-for-bit comparisons and forking want one thread.
os.environ.update(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')

import torch
from mmengine.config import Config
from mmengine.config import config as mmengine_config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS, init_default_scope
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

TOOLS = Path(__file__).resolve().parents[1]
CONFIGS = TOOLS.parent / 'configs'
sys.path.insert(0, str(TOOLS))

import train  # noqa: E402  tools/train.py

from mmextra.engine.checkpoint import read_checkpoint  # noqa: E402

FORK = multiprocessing.get_context('fork')
HANGS = 600  # seconds after which a process is given up

# The moments of a kill, by phase.
PHASES = dict(
    step=(
        'before an optimizer steps',
        'after an optimizer stepped',  # where there are several: between their steps
    ),
    checkpoint=(
        'amid the file',
        'before it takes its name',
        'before last_checkpoint is written',
        'amid last_checkpoint',
        'before last_checkpoint takes its name',
        'before an old one is removed',
    ),
    evaluation=('amid the images', 'after the metrics'),
    outside=('any time',),
)
# Saving has the most moments, and gets the most kills.
ORDER = ('step', 'checkpoint', 'evaluation', 'checkpoint', 'outside')


# Small trainings


class Case(NamedTuple):
    """A training to be killed."""

    cfg: Config
    steps: int  # of optimizers between two checkpoints


CHECKPOINTS = 4  # in each run, every one followed by an evaluation
VAL_BATCHES = 2
SMALL_PYRAMID = {
    'model.backbone.base_channels': 8,
    'model.neck.in_channels': [16, 32, 64],
}


def draw(folder: Path, name: str, size: str) -> None:
    """Draw a data set of 12 + 4 images where the configs look for it."""
    out = folder / 'data' / name.replace('-', '_')
    command = [sys.executable, TOOLS / 'prepare_data.py', name, '--out', out, '--size', size]
    command += ['--train', 12, '--val', 4]
    subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL)


def smaller(path: str, changes: dict) -> Config:
    """A shipped config with changes, which stays in one process and evaluates after each epoch."""
    cfg = Config.fromfile(CONFIGS / path)
    for loader, batch_size in (('train_dataloader', 4), ('val_dataloader', 2)):
        cfg[loader].update(batch_size=batch_size, num_workers=0, persistent_workers=False)
    cfg.merge_from_dict(
        {
            'train_cfg.val_interval': 1,
            'default_hooks.logger.interval': 1,
            'log_level': 'WARNING',
            'randomness': dict(seed=0),
            **changes,
        }
    )
    return cfg


def write_random_weights(cfg: Config, path: Path) -> None:
    """Write random weights of a config's model."""

    def write() -> None:
        torch.manual_seed(1)
        init_default_scope(cfg.default_scope)
        model = MODELS.build(cfg.model)
        model.init_weights()
        torch.save(dict(meta={}, state_dict=model.state_dict()), path)

    child = fork(path.with_suffix('.log'), write)
    child.join()
    if child.exitcode != 0:
        raise RuntimeError(path.with_suffix('.log').read_text())


def distill(folder: Path) -> Case:
    """A GFL that learns from one teacher through two hooks: LD, and ReviewKD with its adapters."""
    draw(folder, 'shapes', '128x96')
    small = {
        **SMALL_PYRAMID,
        'model.neck.out_channels': 32,
        'model.bbox_head.in_channels': 32,
        'model.bbox_head.feat_channels': 32,
        'model.bbox_head.stacked_convs': 1,
    }
    teacher_cfg = smaller('ld/gfl-teacher_shapes_demo.py', small)
    teacher_cfg.dump(folder / 'teacher.py')
    write_random_weights(teacher_cfg, folder / 'teacher.pth')
    teacher = dict(config=str(folder / 'teacher.py'), checkpoint=str(folder / 'teacher.pth'))
    changes = {
        **small,
        'train_cfg.max_epochs': CHECKPOINTS,
        'train_dataloader.dataset.pipeline.2.scale': (64, 64),
        'val_dataloader.dataset.pipeline.1.scale': (64, 64),
        'custom_hooks': [
            dict(type='mmextra.LocalizationDistillationHook', teacher=teacher),
            dict(type='mmextra.ReviewKDHook', teacher=teacher, mid_channels=16),
            dict(type='mmextra.SeedEachEpochHook'),
        ],
        'default_hooks.checkpoint.save_best': 'coco/bbox_mAP',
    }
    return Case(smaller('ld/ld_gfl_shapes_demo.py', changes), steps=3)


def decouplenet(folder: Path) -> Case:
    """DecoupleNet: three optimizers, thresholds, banks that overflow; it starts from a checkpoint."""
    changes = {
        'model.backbone.stem_channels': 8,
        'model.backbone.base_channels': 8,
        'model.decode_head.in_channels': 64,
        'model.decode_head.channels': 8,
        'model.feat_discriminator.in_channels': 8,
        'model.adapt_cfg.bank': 200,
        'train_dataloader.dataset.source.num_images': 8,
        'train_dataloader.dataset.target.num_images': 6,
        'val_dataloader.dataset.num_images': 4,
        'train_cfg.max_iters': 2 * CHECKPOINTS,
        'train_cfg.val_interval': 2,
        'default_hooks.checkpoint.interval': 2,
        'default_hooks.checkpoint.save_best': 'mIoU',
        'load_from': str(folder / 'source.pth'),
    }
    cfg = smaller('decouplenet/decouplenet_r18-small_drawn-source-to-target_demo.py', changes)
    write_random_weights(cfg, folder / 'source.pth')
    return Case(cfg, steps=6)


def o2detr(folder: Path) -> Case:
    """O2DETR on rotated rectangles, with dropout."""
    draw(folder, 'rotated-rectangles', '64x64')
    layer = 'model.decoder.layer_cfg'
    changes = {
        **SMALL_PYRAMID,
        'model.num_queries': 10,
        'model.neck.out_channels': 16,
        'model.neck.norm_cfg.num_groups': 4,
        'model.encoder': dict(
            num_layers=1, layer_cfg=dict(embed_dims=16, feedforward_channels=32, dropout=0.1)
        ),
        'model.decoder.num_layers': 2,
        f'{layer}.self_attn_cfg.embed_dims': 16,
        f'{layer}.cross_attn_cfg.embed_dims': 16,
        f'{layer}.ffn_cfg.embed_dims': 16,
        f'{layer}.ffn_cfg.feedforward_channels': 32,
        'model.positional_encoding.num_feats': 8,
        'model.bbox_head.embed_dims': 16,
        'train_cfg.max_epochs': CHECKPOINTS,
        'train_dataloader.dataset.pipeline.2.scale': (64, 64),
        'val_dataloader.dataset.pipeline.1.scale': (64, 64),
        'custom_hooks': [dict(type='mmextra.SeedEachEpochHook')],
        'default_hooks.checkpoint.interval': 1,
        'default_hooks.checkpoint.save_best': 'dota/mAP',
    }
    return Case(smaller('o2detr/o2detr_r18_rotated-rectangles_demo.py', changes), steps=3)


def backbone_ema(folder: Path) -> Case:
    """VOLO as a classifier, with an average of its weights."""
    changes = {
        'train_dataloader.dataset.num_images': 12,
        'val_dataloader.dataset.num_images': 4,
        'train_cfg.max_epochs': CHECKPOINTS,
        'custom_hooks': [
            dict(type='EMAHook', momentum=0.1),
            dict(type='mmextra.SeedEachEpochHook'),
        ],
        'default_hooks.checkpoint.save_best': 'accuracy/top1',
    }
    return Case(smaller('volo/volo-nano_1xb64-8e_shapes-patterns_demo.py', changes), steps=3)


# Each with what it needs to have imported.
CASES: Dict[str, Tuple[Callable[[Path], Case], Tuple[str, ...]]] = dict(
    distill=(distill, ('mmdet.models', 'mmdet.datasets', 'mmdet.evaluation', 'mmextra.distill.ld')),
    decouplenet=(decouplenet, ('mmseg.models', 'mmseg.datasets', 'mmextra.seg.decouplenet')),
    o2detr=(o2detr, ('mmdet.models', 'mmdet.datasets', 'mmdet.evaluation', 'mmextra.det.o2detr')),
    backbone_ema=(
        backbone_ema,
        ('mmpretrain.models', 'mmpretrain.datasets', 'mmextra.backbones.volo'),
    ),
)


# In the process that is killed


class Kill(NamedTuple):
    """When a process dies: at an event of this name, the ``nth`` of them."""

    moment: str
    nth: int
    file_size: int  # that a checkpoint reaches when it dies amid the file

    @property
    def phase(self) -> str:
        """The name of the phase that the moment lies in."""
        return next(phase for phase, moments in PHASES.items() if self.moment in moments)


@HOOKS.register_module(force=True)
class KillHook(Hook):
    """Reports where training begins, and what happens in it. The process fills in the two functions."""

    priority = 'HIGHEST'
    begins: Callable[[int], None]
    happens: Callable[[str], None]

    def before_train(self, runner) -> None:
        """Report the iteration that a run goes on from."""
        KillHook.begins(runner.iter)

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Report a batch of the evaluation."""
        KillHook.happens('amid the images')

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Report metrics, of which nothing was saved yet."""
        KillHook.happens('after the metrics')


def lie_in_wait(kill: Optional[Kill]) -> None:
    """Let this process die at a moment, by a signal that leaves it no time for anything."""
    count = 0

    def happens(moment: str, file_size: Optional[int] = None) -> None:
        nonlocal count
        if kill is None or moment != kill.moment:
            return
        count += 1
        if count != kill.nth:
            return
        if file_size is None:
            os.kill(os.getpid(), signal.SIGKILL)
        # The file is about to be written: the kernel ends the process when it has this size.
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

    def look_at_files(event: str, args: tuple) -> None:
        if event == 'open' and isinstance(args[0], (str, os.PathLike)) and 'w' in (args[1] or ''):
            name = os.path.basename(args[0]).removesuffix('.part')
            if name.endswith('.pth'):
                happens('amid the file', kill and kill.file_size)
            elif name == 'last_checkpoint':
                happens('before last_checkpoint is written')
                happens('amid last_checkpoint', 0)
        elif event == 'os.rename' and str(args[1]).endswith('.pth'):
            happens('before it takes its name')
        elif event == 'os.rename' and str(args[1]).endswith('last_checkpoint'):
            happens('before last_checkpoint takes its name')
        elif event == 'os.remove' and str(args[0]).endswith('.pth'):
            happens('before an old one is removed')

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
    sys.addaudithook(look_at_files)
    register_optimizer_step_pre_hook(lambda *_: happens('before an optimizer steps'))
    register_optimizer_step_post_hook(lambda *_: happens('after an optimizer stepped'))
    KillHook.happens = happens


def train_and_die(command: List[str], kill: Optional[Kill], told: Connection) -> None:
    """Train, if there is time."""
    # Makes dumped configs pretty, and takes longer than the training.
    mmengine_config.FormatCode = lambda text, **_: (text, True)
    KillHook.begins = told.send
    lie_in_wait(kill)
    train.main(command)


# In the process that kills


def fork(log: Path, function: Callable, *args) -> multiprocessing.Process:
    """Call a function in a process of its own, with all output in a file."""

    def call() -> None:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        function(*args)

    child = FORK.Process(target=call)
    child.start()
    return child


class Outcome(NamedTuple):
    """What became of a process: its exit code, where training began, how many seconds it took."""

    code: int
    began: Optional[int]
    seconds: float


def attempt(
    command: List[str], log: Path, kill: Optional[Kill] = None, delay: Optional[float] = None
) -> Outcome:
    """Train until the end or a kill; with a delay, the kill comes so many seconds after training began."""
    reader, writer = FORK.Pipe(duplex=False)
    child = fork(log, train_and_die, command, kill, writer)
    writer.close()
    try:
        began = reader.recv() if reader.poll(HANGS) else None
    except EOFError:
        began = None
    start = time.monotonic()
    child.join(HANGS if delay is None else delay)
    hangs = child.exitcode is None and delay is None
    child.kill()  # nothing, if it has ended
    child.join()
    return Outcome(1 if hangs else child.exitcode, began, time.monotonic() - start)


def saved_iteration(work_dir: Path) -> int:
    """How far training had come when it was last saved; 0 if it was not.

    Raises:
        ValueError or FileNotFoundError: If ``last_checkpoint`` does not name a whole checkpoint.
    """
    pointer = work_dir / 'last_checkpoint'
    if not pointer.exists():
        return 0
    return read_checkpoint(pointer.read_text().strip())['meta']['iter']


def differences(a: Any, b: Any, path: str = '') -> Iterator[str]:
    """Paths at which two nested structures are not equal, bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype != b.dtype or not torch.equal(a, b):
            yield path
    elif isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from differences(a[key], b[key], f'{path}/{key}')
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b)):
            yield from differences(x, y, f'{path}/{i}')
    elif type(a) is not type(b) or a != b:
        yield path


def final_state(work_dir: Path) -> dict:
    """All that training has made, without times and logs."""
    checkpoint = read_checkpoint((work_dir / 'last_checkpoint').read_text().strip())
    return {k: v for k, v in checkpoint.items() if k not in ('meta', 'message_hub')}


def checkpoints(work_dir: Path) -> List[str]:
    """What there is of checkpoints, unfinished ones too; without the best, as an evaluation that was stopped is not
    repeated, and without the digests of published ones."""
    names = (path.name for path in work_dir.glob('*.pth*'))
    return sorted(name.partition('-')[0] for name in names if not name.startswith('best'))


@dataclass
class Row:
    """What was seen in a case."""

    case: str
    kills: Counter = field(default_factory=Counter)
    missed: List[str] = field(default_factory=list)  # moments that never came
    resumes: int = 0
    runs: int = 0
    lost: int = 0
    corrupt: int = 0
    left_over: int = 0  # runs that end with other files than the unbroken one
    different: List[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing was lost."""
        bad = self.missed or self.lost or self.corrupt or self.left_over or self.different
        return not bad and self.runs > 0

    def cells(self) -> list:
        """Its line in the table."""
        identical = 'no' if self.different or not self.runs else 'yes'
        counts = (self.kills[phase] for phase in PHASES)
        seen = (self.resumes, self.runs, self.lost, self.corrupt, self.left_over)
        return [self.case, *counts, *seen, identical]


HEADINGS = ('case', *PHASES, 'resumes', 'whole runs', 'lost runs', 'corrupt `last_checkpoint`')
HEADINGS += ('files left over', 'bit-identical')


def table(rows: List[Row]) -> str:
    """The rows in Markdown."""
    lines = [HEADINGS, ['---'] * len(HEADINGS), *(row.cells() for row in rows)]
    return '\n'.join(f'| {" | ".join(str(cell) for cell in line)} |' for line in lines)


def planned(kills: int, steps: int, file_size: int, chance: random.Random) -> List[Kill]:
    """Kills in all phases and moments, in random order, each within the next two checkpoints."""
    used: Counter = Counter()
    plan = []
    for i in range(kills):
        phase = ORDER[i % len(ORDER)]
        moment = PHASES[phase][used[phase] % len(PHASES[phase])]
        used[phase] += 1
        most = dict(step=2 * steps, evaluation=2 * VAL_BATCHES).get(phase, 2)
        most = 2 if moment == 'after the metrics' else most
        plan.append(Kill(moment, chance.randint(1, most), file_size))
    chance.shuffle(plan)
    return plan


def stress(name: str, folder: Path, kills: int, seed: int, checkpoint_hook: str) -> Row:
    """Put one case through all its kills."""
    os.environ['MMEXTRA_DATA'] = str(folder / 'data')
    cfg, steps = CASES[name][0](folder)
    cfg.default_hooks.checkpoint.update(type=checkpoint_hook, max_keep_ckpts=1, rule='greater')
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='KillHook')]
    config = folder / 'config.py'
    cfg.dump(config)

    def command(work_dir: Path, resume: bool) -> List[str]:
        return [str(config), '--work-dir', str(work_dir), *(['--resume'] if resume else [])]

    whole = attempt(command(folder / 'unbroken', False), folder / 'unbroken.log')
    if whole.code != 0:
        raise RuntimeError(f'{name} does not train:\n{(folder / "unbroken.log").read_text()}')
    expected = final_state(folder / 'unbroken')
    kept = checkpoints(folder / 'unbroken')
    checkpoint = (folder / 'unbroken/last_checkpoint').read_text()

    row = Row(name)
    chance = random.Random(f'{seed} {name}')
    plan = planned(kills, steps, os.path.getsize(checkpoint) // 2, chance)
    runs, work_dir, saved, fresh = 0, None, 0, True
    while plan or not fresh:
        if fresh:
            runs, saved = runs + 1, 0
            work_dir = folder / f'run_{runs}'
        kill = plan[0] if plan else None
        outside = kill is not None and kill.phase == 'outside'
        delay = chance.uniform(0, whole.seconds * 2 / CHECKPOINTS) if outside else None
        log = folder / f'{work_dir.name}.log'
        done = attempt(command(work_dir, not fresh), log, None if outside else kill, delay)

        if fresh and done.code > 0:
            raise RuntimeError(f'{name} does not train:\n{log.read_text()}')
        trouble = []
        if done.began is not None and done.began != saved:
            trouble.append(f'went on from iteration {done.began}, where {saved} was saved')
        row.resumes += bool(done.began)
        if done.code < 0:
            row.kills[kill.phase] += 1
            plan.pop(0)
            print(f'{name}: {work_dir.name} killed, {kill.phase}: {kill.moment} ({kill.nth})')
        elif done.code > 0:
            tail = log.read_text()[-1500:]
            trouble.append(f'stopped with exit status {done.code}:\n{tail}')
        elif kill and fresh:
            row.missed.append(kill.moment)
            plan.pop(0)
        try:
            now = saved_iteration(work_dir)
            if now < saved:
                trouble.append(f'is back at iteration {now}, where {saved} was saved')
            saved = now
        except (ValueError, FileNotFoundError) as error:
            row.corrupt += 1
            trouble.append(f'has a corrupt last_checkpoint: {error}')
        if trouble:
            row.lost += 1
            print(f'{name}: {work_dir.name} {"; ".join(trouble)}')
        elif done.code == 0:
            row.runs += 1
            found = list(differences(final_state(work_dir), expected))
            row.left_over += checkpoints(work_dir) != kept
            row.different += found
            print(f'{name}: {work_dir.name} ended, {len(found)} differences {found[:3]}')
        # The next process resumes what was killed; all else is over.
        fresh = bool(trouble) or done.code == 0
    return row


def main(argv: Optional[List[str]] = None) -> int:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument('--case', nargs='+', choices=[*CASES], default=[*CASES], help='default: all')
    cli.add_argument('--kills', type=int, default=20, help='of each case (default: 20)')
    cli.add_argument('--seed', type=int, default=0, help='of the moments (default: 0)')
    cli.add_argument(
        '--checkpoint-hook',
        choices=['mmextra.AtomicCheckpointHook', 'CheckpointHook'],
        default='mmextra.AtomicCheckpointHook',
        help="what saves; mmengine's CheckpointHook shows what the other is for",
    )
    args = cli.parse_args(argv)
    torch.set_num_threads(1)
    rows, failed = [], False
    folder = Path(tempfile.mkdtemp(prefix='stress_resume_'))
    for name in args.case:
        for module in CASES[name][1]:
            import_module(module)
        (folder / name).mkdir()
        try:
            rows.append(stress(name, folder / name, args.kills, args.seed, args.checkpoint_hook))
        except RuntimeError:
            traceback.print_exc()
            failed = True
    print(table(rows))
    for row in rows:
        if row.missed:
            print(f'{row.case}: never came: {", ".join(row.missed)}')
        if row.different:
            print(f'{row.case}: differ: {", ".join(row.different[:10])}')
    if failed or not all(row.good for row in rows):
        print(f'what was left is in {folder}')
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == '__main__':
    sys.exit(main())
