"""Distil a small detector end to end: teacher, plain student, distilled student.

    make demo                                    # drawn shapes, one seed, about 10 minutes on 2 cores
    python tools/demo.py --data bccd --seeds 0 1 2

Trains and tests through `mim`, tests the distilled student once more with the stock mmdet script in
a process that cannot import mmextra, and writes a table and a picture. Runs that are finished are
not repeated.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Dict, List

from compare import call, seconds_per_iteration

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs' / 'ld'
RUNS = dict(
    shapes=dict(
        teacher='gfl-teacher_shapes_demo.py',
        plain='gfl-plain_shapes_demo.py',
        distilled='ld_gfl_shapes_demo.py',
    ),
    bccd=dict(teacher='gfl-teacher_bccd.py', plain='gfl-plain_bccd.py', distilled='ld_gfl_bccd.py'),
)
METRICS = ('mAP', 'mAP_50', 'mAP_75')


def published(work_dir: Path) -> Path:
    """The checkpoint that holds the weights alone: `epoch_N-HASH.pth`."""
    found = sorted(work_dir.glob('epoch_*-*.pth'), key=lambda p: p.stat().st_mtime)
    return found[-1] if found else None


def train(config: Path, work_dir: Path, seed: int, options: List[str] = ()) -> Path:
    """Train through mim, unless it was done before, and return the published checkpoint."""
    if published(work_dir) is None:
        print(f'  training {config.stem} (seed {seed})', flush=True)
        call(
            ['mim', 'train', 'mmextra', config, '--work-dir', work_dir]
            + ['--cfg-options', f'randomness.seed={seed}', *options]
        )
    return published(work_dir)


def test(config: Path, checkpoint: Path, work_dir: Path) -> Dict[str, float]:
    """Test through mim and return the box metrics."""
    out = work_dir / 'metrics.json'
    if not out.is_file():
        call(
            ['mim', 'test', 'mmextra', config, '--checkpoint', checkpoint, '--work-dir', work_dir]
            + ['--out', out, '--out-item', 'metrics']
        )
    return box_metrics(json.loads(out.read_text()))


def stock_test(config: Path, checkpoint: Path, work_dir: Path) -> Dict[str, float]:
    """Test with the stock mmdet script, in a process in which mmextra cannot be imported."""
    import mmdet

    hidden = work_dir / 'without_mmextra'
    (hidden / 'mmextra').mkdir(parents=True, exist_ok=True)
    (hidden / 'mmextra' / '__init__.py').write_text("raise ImportError('mmextra is hidden')\n")
    script = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'test.py'
    call(
        [sys.executable, script, config, checkpoint, '--work-dir', work_dir], PYTHONPATH=str(hidden)
    )
    log = sorted(work_dir.glob('*/*.json'))[-1]
    return box_metrics(json.loads(log.read_text().splitlines()[-1]))


def box_metrics(logged: dict) -> Dict[str, float]:
    return {m: logged[f'coco/bbox_{m}'] for m in METRICS}


def run_seed(data: str, out: Path, seed: int, teacher_seed: int) -> Dict[str, dict]:
    """Teacher, plain and distilled student of one seed."""
    rows = {}
    for name, file in RUNS[data].items():
        own_seed = teacher_seed if name == 'teacher' else seed
        work_dir = out / f'{name}_seed{own_seed}'
        options = []
        if name == 'distilled':
            options = [f'custom_hooks.0.teacher.checkpoint={rows["teacher"]["checkpoint"]}']
        checkpoint = train(CONFIGS / file, work_dir, own_seed, options)
        rows[name] = dict(
            test(CONFIGS / file, checkpoint, work_dir),
            checkpoint=checkpoint,
            seconds=seconds_per_iteration(work_dir),
            megabytes=checkpoint.stat().st_size / 2**20,
        )
    # The config that the plain run wrote down: stock components only, no base left to look up.
    config = out / f'plain_seed{seed}' / RUNS[data]['plain']
    stock = stock_test(config, rows['distilled']['checkpoint'], out / f'stock_seed{seed}')
    if any(abs(stock[m] - rows['distilled'][m]) > 1e-6 for m in METRICS):
        sys.exit(f'stock mmdet gives {stock}, mmextra {rows["distilled"]}')
    return rows


def table(seeds: List[Dict[str, dict]]) -> str:
    """Mean over seeds, and the spread where there is more than one."""

    def cell(name, key, scale=1.0, digits=1):
        values = [rows[name][key] * scale for rows in seeds]
        spread = f' ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else ''
        return f'{statistics.mean(values):.{digits}f}{spread}'

    lines = ['| run | mAP | mAP50 | mAP75 | train s/iter | checkpoint MB |', '| --- ' * 6 + '|']
    for name in ('teacher', 'plain', 'distilled'):
        cells = [cell(name, m, 100) for m in METRICS]
        cells += [cell(name, 'seconds', digits=3), cell(name, 'megabytes', digits=2)]
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def draw(data: str, out: Path, rows: Dict[str, dict], count: int = 3) -> Path:
    """Ground truth, plain and distilled student side by side on validation images."""
    import cv2
    import numpy as np
    from mmdet.apis import inference_detector, init_detector
    from mmdet.registry import DATASETS
    from mmdet.visualization import DetLocalVisualizer
    from mmengine.config import Config

    import mmextra.registry  # noqa: F401

    cfg = Config.fromfile(CONFIGS / RUNS[data]['plain'])
    models = [
        init_detector(cfg.copy(), str(rows[name]['checkpoint']), device='cpu')
        for name in ('plain', 'distilled')
    ]
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    visualizer = DetLocalVisualizer(line_width=2, alpha=1.0)
    visualizer.dataset_meta = dataset.metainfo
    strips = []
    for index in range(count):
        sample = dataset[index]['data_samples']
        # The host loads the truth of test images after resizing: all boxes are in the file's frame.
        image = cv2.imread(sample.img_path)[..., ::-1]
        sample.gt_instances.bboxes = sample.gt_instances.bboxes.tensor
        panels = []
        for model in (None, *models):
            shown = sample if model is None else inference_detector(model, sample.img_path)
            visualizer.add_datasample(
                'panel',
                image,
                shown.cpu(),
                draw_gt=model is None,
                draw_pred=model is not None,
                pred_score_thr=0.3,
            )
            panels.append(visualizer.get_image())
        strips.append(np.concatenate(panels, 1))
    header = np.full((28, strips[0].shape[1], 3), 255, np.uint8)
    for i, title in enumerate(('ground truth', 'plain student', 'distilled student')):
        position = (strips[0].shape[1] // 3 * i + 8, 20)
        cv2.putText(
            header, title, position, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA
        )
    picture = out / 'detections.jpg'
    cv2.imwrite(str(picture), np.concatenate([header, *strips])[..., ::-1])
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', choices=sorted(RUNS), default='shapes')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument(
        '--one-teacher', action='store_true', help="the first seed's teacher serves all students"
    )
    parser.add_argument('--out', type=Path, default=None, help='default: work_dirs/demo')
    args = parser.parse_args()
    os.chdir(ROOT)
    default = Path('work_dirs') / ('demo' if args.data == 'shapes' else f'demo_{args.data}')
    out = (args.out or default).resolve()
    out.mkdir(parents=True, exist_ok=True)
    if args.data == 'shapes':
        call([sys.executable, ROOT / 'tools' / 'prepare_data.py', 'shapes'])
    seeds = []
    for seed in args.seeds:
        print(f'seed {seed}', flush=True)
        teacher_seed = args.seeds[0] if args.one_teacher else seed
        seeds.append(run_seed(args.data, out, seed, teacher_seed))
    text = table(seeds)
    (out / 'table.md').write_text(text + '\n')
    picture = draw(args.data, out, seeds[0])
    print(
        f'\n{text}\n\nThe stock mmdet test script, without mmextra, gives the distilled student the same mAP.'
    )
    print(f'written: {out / "table.md"}, {picture}')


if __name__ == '__main__':
    main()
