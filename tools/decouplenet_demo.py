"""Adapt a small segmentor to another domain, end to end, and hold it against its bounds.

    python tools/decouplenet_demo.py --data drawn                   # coloured shapes, nothing to download
    python tools/decouplenet_demo.py --data camvid --seeds 0 1 2    # by day -> at dusk, $MMEXTRA_DATA/camvid

Trains on the source alone, phase 1, soft labels, phase 2, and the upper bound that is given the target's labels,
all with the stock runner; tests all of them on the target (drawn: also on the source); writes a table with the
IoU of every class and a picture. Runs that are finished are not repeated.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Dict, List

from compare import call, seconds_per_iteration

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs' / 'decouplenet'
RUNS = dict(
    drawn=dict(
        source='aspp-sum_r18-small_drawn-source_demo.py',
        phase1='decouplenet_r18-small_drawn-source-to-target_demo.py',
        soft='decouplenet-soft-labels_r18-small_drawn-source-to-target_demo.py',
        phase2='decouplenet-st_r18-small_drawn-source-to-target_demo.py',
        bound='aspp-sum_r18-small_drawn-target_demo.py',
    ),
    camvid=dict(
        source='aspp-sum_r18-small_camvid-day_demo.py',
        phase1='decouplenet_r18-small_camvid-day-to-dusk_demo.py',
        soft='decouplenet-soft-labels_r18-small_camvid-day-to-dusk_demo.py',
        phase2='decouplenet-st_r18-small_camvid-day-to-dusk_demo.py',
        bound='aspp-sum_r18-small_camvid-day-dusk_demo.py',
    ),
)
TITLES = dict(
    source='source only',
    phase1='DecoupleNet, phase 1',
    phase2='DecoupleNet, phase 2',
    bound='with labels of the target',
)
ON_SOURCE = dict(
    drawn=['test_dataloader.dataset.domain=source', 'test_dataloader.dataset.seed=3'],
    camvid=[
        'test_dataloader.dataset.prefixes=["0016E5_"]',
        'test_dataloader.dataset.data_prefix.img_path=img_dir/val',
        'test_dataloader.dataset.data_prefix.seg_map_path=ann_dir/val',
    ],
)


def trained(work_dir: Path) -> Path:
    """The last checkpoint, once a run is finished."""
    mark = work_dir / 'finished'
    return Path(mark.read_text()) if mark.is_file() else None


def train(config: str, work_dir: Path, options: List[str]) -> Path:
    """Train, unless it was done before, and return the checkpoint."""
    if trained(work_dir) is None:
        print(f'  training {config}', flush=True)
        command = [ROOT / 'tools/train.py', CONFIGS / config, '--work-dir', work_dir]
        call([sys.executable, *command, '--no-validate', '--cfg-options', *options])
        last = (work_dir / 'last_checkpoint').read_text().strip()
        (work_dir / 'finished').write_text(last)
    return trained(work_dir)


def test(config: str, checkpoint: Path, out: Path, options: List[str] = ()) -> Dict[str, float]:
    """Test, unless it was done before, and return the metrics."""
    if not out.is_file():
        command = [ROOT / 'tools/test.py', CONFIGS / config, checkpoint]
        command += ['--work-dir', out.parent, '--out', out, '--out-item', 'metrics']
        call([sys.executable, *command, *(['--cfg-options', *options] if options else [])])
    return json.loads(out.read_text())


def run_seed(data: str, out: Path, seed: int, shorten: int) -> Dict[str, dict]:
    """All runs of one seed."""
    runs, checkpoints, rows = RUNS[data], {}, {}
    common = [f'randomness.seed={seed}']
    if shorten:
        common += [f'train_cfg.max_iters={shorten}', f'default_hooks.checkpoint.interval={shorten}']
        common += ['default_hooks.logger.interval=1']
    folders = {name: out / f'{name}_seed{seed}' for name in runs}
    soft = folders['soft'] / 'soft_labels'
    needs = dict(phase1='source', phase2='phase1')
    for name in ('source', 'phase1', 'phase2', 'bound'):
        options = list(common)
        if name in needs:
            options.append(f'load_from={checkpoints[needs[name]]}')
        if name == 'phase2':
            dump = [f'test_evaluator.folder={soft}']
            test(runs['soft'], checkpoints['phase1'], folders['soft'] / 'metrics.json', dump)
            steps = 'train_dataloader.dataset.target.pipeline'
            index = 1 if data == 'camvid' else 0  # where the pipeline loads soft labels
            options += [
                f'model.thresholds={soft}/thresholds.json',
                f'{steps}.{index}.folder={soft}',
            ]
        checkpoint = checkpoints[name] = train(runs[name], folders[name], options)
        target = test(runs[name], checkpoint, folders[name] / 'metrics.json')
        source = test(
            runs[name], checkpoint, folders[name] / 'source/metrics.json', ON_SOURCE[data]
        )
        rows[name] = dict(
            target,
            checkpoint=checkpoint,
            on_source=source['mIoU'],
            seconds=seconds_per_iteration(folders[name]),
        )
    return rows


def table(seeds: List[Dict[str, dict]]) -> str:
    """Mean over seeds, and the spread where there is more than one; one column for each run."""
    classes = [k for k in seeds[0]['source'] if k.startswith('IoU/')]

    def cell(name, key, digits=1):
        values = [rows[name][key] for rows in seeds if key in rows[name]]
        spread = f' ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else ''
        return f'{statistics.mean(values):.{digits}f}{spread}' if values else ''

    lines = [f'| target | {" | ".join(TITLES.values())} |', '| --- ' * (len(TITLES) + 1) + '|']
    for key, title, digits in (
        ('mIoU', '**mIoU**', 1),
        *((k, k.removeprefix('IoU/'), 1) for k in classes),
        ('on_source', 'mIoU on the source', 1),
        ('seconds', 'train s/iter', 3),
    ):
        cells = [cell(name, key, digits) for name in TITLES]
        lines.append(f'| {title} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def draw(data: str, out: Path, rows: Dict[str, dict], count: int = 4) -> Path:
    """Input, source only, DecoupleNet and truth, side by side on test images."""
    import cv2
    import numpy as np
    import torch
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmengine.runner import load_checkpoint
    from mmseg.registry import DATASETS, MODELS

    import mmextra.registry  # noqa: F401

    init_default_scope('mmseg')
    models = []
    for name in ('source', 'phase2'):
        cfg = Config.fromfile(CONFIGS / RUNS[data][name])
        models.append(MODELS.build(cfg.model))
        load_checkpoint(models[-1], str(rows[name]['checkpoint']), map_location='cpu')
        models[-1].eval()
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    palette = np.array([*dataset.metainfo['palette'], *[[0, 0, 0]] * 256])[:256].astype(np.uint8)
    palette[255] = 0
    strips = []
    for index in np.linspace(0, len(dataset) - 1, count).astype(int).tolist():
        item = dataset[index]
        truth = item['data_samples'].gt_sem_seg.data[0].numpy()
        image = item['inputs'].permute(1, 2, 0).numpy()[..., ::-1]
        panels = [cv2.resize(image, truth.shape[::-1])]
        for model in models:
            batch = dict(inputs=[item['inputs']], data_samples=[item['data_samples']])
            with torch.no_grad():
                found = model.test_step(batch)[0].pred_sem_seg.data[0].cpu().numpy()
            panels.append(palette[found])
        panels.append(palette[truth])
        width = max(truth.shape[1] // 2, 160)
        height = round(truth.shape[0] * width / truth.shape[1])
        panels = [cv2.resize(p, (width, height), interpolation=cv2.INTER_NEAREST) for p in panels]
        strips.append(np.concatenate(panels, 1))
    header = np.full((24, strips[0].shape[1], 3), 255, np.uint8)
    for i, title in enumerate(('input', 'source only', 'DecoupleNet', 'truth')):
        position = (strips[0].shape[1] // 4 * i + 6, 17)
        cv2.putText(
            header, title, position, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA
        )
    picture = out / 'segmentation.jpg'
    cv2.imwrite(str(picture), np.concatenate([header, *strips])[..., ::-1])
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data', choices=sorted(RUNS), default='drawn')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--shorten', type=int, help='train so many iterations only, as a trial')
    parser.add_argument(
        '--out',
        type=Path,
        help='default: work_dirs/decouplenet_DATA, and another folder for a trial',
    )
    args = parser.parse_args()
    trial = f'_{args.shorten}-iterations' if args.shorten else ''
    out = (args.out or ROOT / 'work_dirs' / f'decouplenet_{args.data}{trial}').resolve()
    out.mkdir(parents=True, exist_ok=True)
    seeds = []
    for seed in args.seeds:
        print(f'seed {seed}', flush=True)
        seeds.append(run_seed(args.data, out, seed, args.shorten))
    text = table(seeds)
    (out / 'table.md').write_text(text + '\n')
    picture = draw(args.data, out, seeds[0])
    print(f'\n{text}\n\nwritten: {out / "table.md"}, {picture}')


if __name__ == '__main__':
    main()
