"""Train small O2DETRs on drawn rectangles of any angle, or on patches of two DOTA images.

    python tools/o2detr_demo.py --data rectangles --seeds 0 1 2
    python tools/o2detr_demo.py --data dota-sample --source data/dota_sample

The first trains O2DETR, the same network with every angle held at 0, and, for five epochs, the same network
with the attention of stock Deformable DETR in its encoder. The second is tested on what it was trained on:
it shows that real annotations can be fitted. Writes a table and a picture. Finished runs are not repeated.
"""

import argparse
import os
import re
import statistics
import sys
from pathlib import Path
from typing import Dict, List

from compare import call, logged, table, train

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs' / 'o2detr'
RUNS = {
    'rectangles': [
        'o2detr_r18_rotated-rectangles_demo',
        'o2detr-no-angle_r18_rotated-rectangles_demo',
        'o2detr-attention_r18_rotated-rectangles_demo',
    ],
    'dota-sample': ['o2detr_r18_dota-sample_demo'],
}
# Of boxes in the picture, by class; blue, green, red.
COLOURS = [(0, 255, 0), (255, 255, 255), (255, 0, 255), (0, 255, 255)]
EPOCHS = 5  # after which the losses of the two encoders are compared


def prepare(data: str, folder: Path, source: Path) -> None:
    """Draw the rectangles, or cut the DOTA images into patches, below ``folder``."""
    script = [sys.executable, ROOT / 'tools' / 'prepare_data.py']
    if data == 'rectangles':
        call([*script, 'rotated-rectangles', '--out', folder / 'rotated_rectangles'])
    else:
        if not (source / 'labelTxt').is_dir():
            sys.exit(f'{source} holds no labelTxt: name a folder of DOTA images with --source')
        call(
            [*script, 'dota-split', '--source', source, '--out', folder / 'dota_sample_256']
            + ['--size', 256, '--gap', 32]
        )


def loss_of_epoch(work_dir: Path, epoch: int) -> float:
    """Mean of the logged training losses of one epoch, or of the last one of a shorter run."""
    lines = [line for line in logged(work_dir) if 'loss' in line]
    epoch = min(epoch, lines[-1]['epoch'])
    return statistics.mean(line['loss'] for line in lines if line['epoch'] == epoch)


def classes(work_dir: Path, least: int = 20) -> str:
    """AP50 of the classes with at least so many objects, from the last table of the metric in the log."""
    log = sorted(work_dir.glob('*/*.log'))[-1].read_text()
    last = log[log.rindex('class ') :].splitlines()[1:]
    found = [re.fullmatch(r'([\w-]+) +(\d+) +([\d.]+)', line.strip()) for line in last]
    found = [(m[1], int(m[2]), 100 * float(m[3])) for m in found if m and int(m[2]) >= least]
    found.append(('mean', sum(f[1] for f in found), statistics.mean(f[2] for f in found)))
    rows = ['| class | objects | AP50 |', '| --- | --- | --- |']
    return '\n'.join([*rows, *(f'| {name} | {count} | {ap:.1f} |' for name, count, ap in found)])


def losses(out: Path, seeds: List[int]) -> str:
    """The losses of the two encoders after five epochs, a row for each seed."""
    rows = ['| seed | DSConv encoder | deformable encoder |', '| --- | --- | --- |']
    for seed in seeds:
        values = [
            loss_of_epoch(out / f'{name}_seed{seed}', EPOCHS)
            for name in (RUNS['rectangles'][0], RUNS['rectangles'][2])
        ]
        rows.append(f'| {seed} | ' + ' | '.join(f'{v:.3f}' for v in values) + ' |')
    return '\n'.join(rows)


def draw(configs: Dict[str, Path], out: Path, count: int) -> Path:
    """Ground truth and detections side by side.

    Args:
        configs (dict): Title -> work folder of a run, which holds its config and checkpoint.
        out (Path): Where the picture goes.
        count (int): How many images, those with most objects first.
    """
    import cv2
    import numpy as np
    from mmdet.apis import inference_detector, init_detector
    from mmdet.structures.bbox import get_box_tensor
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    from mmextra.registry import DATASETS
    from mmextra.structures.oriented_boxes import OrientedBoxes

    first = Config.fromfile(next(next(iter(configs.values())).glob('*.py')))
    init_default_scope('mmdet')
    dataset = DATASETS.build(first.val_dataloader.dataset)
    models = [None]
    for folder in configs.values():
        checkpoint = max(folder.glob('epoch_*.pth'), key=lambda p: p.stat().st_mtime)
        models.append(init_detector(str(next(folder.glob('*.py'))), str(checkpoint), device='cpu'))
    most = sorted(range(len(dataset)), key=lambda i: -len(dataset.get_data_info(i)['instances']))
    rows = []
    for index in most[:count]:
        sample = dataset[index]['data_samples']
        image = cv2.imread(sample.img_path)
        scale = max(1, round(400 / image.shape[1]))
        panels = []
        for model in models:
            panel = cv2.resize(image, None, fx=scale, fy=scale)
            shown = sample.gt_instances
            if model is not None:
                shown = inference_detector(model, sample.img_path).pred_instances
                shown = shown[shown.scores > 0.3]
            corners = OrientedBoxes(get_box_tensor(shown.bboxes)).corners.numpy() * scale
            for label, polygon in zip(shown.labels.tolist(), corners):
                colour = COLOURS[label % len(COLOURS)]
                cv2.polylines(panel, [polygon.round().astype(int)], True, colour, 2, cv2.LINE_AA)
            panels.append(panel)
        rows.append(np.concatenate(panels, 1))
    header = np.full((28, rows[0].shape[1], 3), 255, np.uint8)
    for i, title in enumerate(('ground truth', *configs)):
        place = (rows[0].shape[1] // len(models) * i + 8, 20)
        cv2.putText(header, title, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
    picture = out / 'detections.jpg'
    cv2.imwrite(str(picture), np.concatenate([header, *rows]))
    return picture


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument('--data', choices=sorted(RUNS), default='rectangles')
    cli.add_argument('--seeds', type=int, nargs='+', default=[0])
    default = Path(os.environ.get('MMEXTRA_DATA', 'data')) / 'dota_sample'
    cli.add_argument('--source', type=Path, default=default, help=f'default: {default}')
    cli.add_argument('--out', type=Path, default=None, help='default: work_dirs/o2detr_DATA')
    cli.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    args = cli.parse_args()
    out = (args.out or Path('work_dirs') / f'o2detr_{args.data}').resolve()
    out.mkdir(parents=True, exist_ok=True)
    prepare(args.data, out / 'data', args.source.resolve())
    os.environ['MMEXTRA_DATA'] = str(out / 'data')

    runs = {name: [] for name in RUNS[args.data]}
    for seed in args.seeds:
        for name, figures in runs.items():
            work_dir = out / f'{name}_seed{seed}'
            figures.append(train(CONFIGS / f'{name}.py', work_dir, seed, args.cfg_options))
    columns = [k for k in runs[RUNS[args.data][0]][0] if k not in ('seconds', 'minutes')]
    text = table(runs, columns, percent=True)
    titles = ['O2DETR', 'angle held at 0']
    if args.data == 'dota-sample':
        for seed in args.seeds:
            found = classes(out / f'{RUNS[args.data][0]}_seed{seed}')
            text += f'\n\nSeed {seed}, classes with at least 20 objects in the patches:\n\n{found}'
    else:
        text += f'\n\nTraining loss in epoch {EPOCHS}:\n\n{losses(out, args.seeds)}'
    (out / 'table.md').write_text(text + '\n')
    shown = {t: out / f'{n}_seed{args.seeds[0]}' for t, n in zip(titles, RUNS[args.data])}
    picture = draw(shown, out, count=3 if args.data == 'rectangles' else 2)
    print(f'\n{text}\n\nwritten: {out / "table.md"}, {picture}')


if __name__ == '__main__':
    main()
