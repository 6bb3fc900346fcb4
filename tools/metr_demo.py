"""Train on two data sets of which each names what the other leaves unnamed, and compare.

    python tools/metr_demo.py                  # one seed, about 8 minutes on one core
    python tools/metr_demo.py --seeds 0 1 2

Every image shows squares, circles and triangles. Set A names squares and circles, set B circles and
triangles. METR learns from both as they are; beside it stand a detector that takes the union for one
set of three classes (a triangle of set A is background to it), one that was told all boxes (what can
be had at best) and one for each set alone, with half the iterations. All are tested on all boxes.
Trains through `mim`; writes a table and a picture. Runs that are finished are not repeated.
"""

import argparse
import io
import json
import os
import statistics
from contextlib import redirect_stdout
from pathlib import Path
from typing import Dict, List

import cv2
import numpy as np
import shapes
from compare import call, metrics, seconds_per_iteration

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs' / 'metr'
CLASSES = ('square', 'circle', 'triangle')
SETS = dict(a=('square', 'circle'), b=('circle', 'triangle'))
SIZE = 96
RUNS = dict(
    metr='metr_dino-r18_shapes-ab_demo.py',
    merged='dino-r18-merged_shapes-ab_demo.py',
    oracle='dino-r18-oracle_shapes-ab_demo.py',
    only_a='dino-r18-only-a_shapes-ab_demo.py',
    only_b='dino-r18-only-b_shapes-ab_demo.py',
)


# Data


def draw(random: np.random.RandomState):
    """One image (96, 96, 3), RGB, and its shapes: one or two of each kind, apart from each other."""
    image = random.uniform(60, 195) + shapes.texture(random, SIZE, SIZE) * random.uniform(8, 20)
    placed = []
    for label in (*range(3), *np.flatnonzero(random.rand(3) < 0.4)):
        points = shapes.outline(CLASSES[label], random.uniform(0.7, 1.0))
        for _ in range(60):
            radius, angle = random.uniform(9, 16), random.uniform(0, 2 * np.pi)
            polygon = shapes.place(points, angle, radius, random.uniform(radius, SIZE - radius, 2))
            shape = shapes.Shape(int(label), polygon)
            left, top, right, bottom = shape.box
            if (
                min(left, top) >= 1
                and max(right, bottom) <= SIZE - 1
                and all(
                    left > o[2] or right < o[0] or top > o[3] or bottom < o[1]
                    for o in (other.box for other in placed)
                )
            ):
                placed.append(shape)
                break
    for shape in placed:
        window, part = shapes.coverage(shape.polygon, SIZE, SIZE)
        colour = shapes.COLOURS[shapes.CLASSES.index(CLASSES[shape.label])]
        colour = colour + random.normal(size=3) * 25
        image[window] += part[..., None] * (colour - image[window])
    image = shapes.blur(image, random.uniform(0.4, 0.9))
    image += random.normal(size=image.shape) * random.uniform(2, 6)
    return np.rint(image).clip(0, 255).astype(np.uint8), placed


def write_data(out: Path, train: int = 800, test: int = 200) -> None:
    """Draw the images, and write annotations as each set, their union and an oracle have them."""
    if (out / 'test.json').is_file():
        return
    print(f'drawing {train} + {test} images to {out}', flush=True)
    drawn = {}
    for split, count in (('train', train), ('test', test)):
        (out / split).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image, drawn[split, index] = draw(np.random.RandomState([split == 'test', index]))
            cv2.imwrite(str(out / split / f'{index:05d}.png'), image[..., ::-1])

    def write(name: str, split: str, indices, named) -> None:
        """``named`` tells which classes are annotated in an image."""
        images, annotations = [], []
        for index in indices:
            file = f'{split}/{index:05d}.png'
            images.append(dict(id=index, file_name=file, width=SIZE, height=SIZE))
            for shape in drawn[split, index]:
                if CLASSES[shape.label] not in named(index):
                    continue
                left, top, right, bottom = (round(v, 2) for v in shape.box)
                box = [left, top, right - left, bottom - top]
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=index,
                        category_id=shape.label + 1,
                        bbox=box,
                        area=box[2] * box[3],
                        iscrowd=0,
                    )
                )
        categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
        content = dict(images=images, annotations=annotations, categories=categories)
        (out / f'{name}.json').write_text(json.dumps(content))

    every, own = range(train), ('a', 'b')
    write('a', 'train', every[0::2], lambda i: SETS['a'])
    write('b', 'train', every[1::2], lambda i: SETS['b'])
    write('union', 'train', every, lambda i: SETS[own[i % 2]])
    write('full', 'train', every, lambda i: CLASSES)
    write('test', 'test', range(test), lambda i: CLASSES)


# Runs


def train(name: str, out: Path, seed: int, options: List[str]) -> Path:
    """Train through mim, unless it was done before, and return the work dir."""
    work_dir = out / f'{name}_seed{seed}'
    if not (work_dir / 'done').is_file():
        print(f'  training {Path(RUNS[name]).stem} (seed {seed})', flush=True)
        call(
            ['mim', 'train', 'mmextra', CONFIGS / RUNS[name], '--work-dir', work_dir]
            + ['--cfg-options', f'randomness.seed={seed}']
            + [f'val_evaluator.0.outfile_prefix={work_dir}/predictions', *options]
        )
        (work_dir / 'done').touch()
    return work_dir


def average_precisions(work_dir: Path, data: Path) -> Dict[str, float]:
    """AP at IoU 0.5 of each class, in percent, from the predictions of the last validation."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):
        truth = COCO(str(data / 'test.json'))
        found = truth.loadRes(str(work_dir / 'predictions.bbox.json'))
        evaluation = COCOeval(truth, found, 'bbox')
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval['precision'][0, :, :, 0, -1]  # (recall, class)
    return {name: 100 * float(precision[:, i].mean()) for i, name in enumerate(CLASSES)}


def run_seed(out: Path, data: Path, seed: int, options: List[str]) -> Dict[str, dict]:
    """All runs of one seed: AP50 of each class, seconds per iteration."""
    rows = {}
    for name in RUNS:
        work_dir = train(name, out, seed, options)
        extraction = {k: v for k, v in metrics(work_dir).items() if k.startswith('cem/')}
        rows[name] = dict(
            average_precisions(work_dir, data),
            seconds=seconds_per_iteration(work_dir),
            **extraction,
        )
    alone = rows.pop('only_a'), rows.pop('only_b')
    rows['separate'] = dict(
        square=alone[0]['square'],
        triangle=alone[1]['triangle'],
        circle=(alone[0]['circle'] + alone[1]['circle']) / 2,
        seconds=statistics.mean(row['seconds'] for row in alone),
    )
    return rows


def table(seeds: List[Dict[str, dict]]) -> str:
    """AP50 of each class, mean over seeds and the spread where there is more than one."""
    lines = [
        '| run | square | circle | triangle | mean AP50 | train s/iter |',
        '| --- | --- | --- | --- | --- | --- |',
    ]
    for rows in seeds:
        for row in rows.values():
            row['mean'] = statistics.mean(row[name] for name in CLASSES)
    for run in seeds[0]:
        cells = []
        for key in (*CLASSES, 'mean', 'seconds'):
            values = [rows[run][key] for rows in seeds]
            digits = 3 if key == 'seconds' else 1
            spread = f' ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else ''
            cells.append(f'{statistics.mean(values):.{digits}f}{spread}')
        lines.append(f'| {run} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def verdict(seeds: List[Dict[str, dict]]) -> str:
    """What the card expects, and what was found."""

    def pair(run: str) -> float:
        return statistics.mean(
            statistics.mean((rows[run]['square'], rows[run]['triangle'])) for rows in seeds
        )

    metr, merged, oracle = pair('metr'), pair('merged'), pair('oracle')
    extraction = statistics.mean(rows['metr']['cem/mAP'] for rows in seeds)
    return (
        f'square and triangle: METR {metr:.1f}, merged {merged:.1f} ({metr - merged:+.1f}; at least '
        f'+5 expected), {100 * metr / max(oracle, 1e-6):.0f} % of the oracle (at least 80 % expected); separate '
        f'{pair("separate"):.1f}; mAP of the category extraction {extraction:.3f}'
    )


def picture(out: Path, data: Path, seed: int, count: int = 4, threshold: float = 0.3) -> Path:
    """Truth and the detections of three runs on test images, side by side, enlarged."""
    scale, colours = 3, [shapes.COLOURS[shapes.CLASSES.index(name)] for name in CLASSES]
    names = ('truth', 'merged', 'metr', 'oracle')
    truth = json.loads((data / 'test.json').read_text())
    boxes = dict(truth=[dict(a, score=1.0) for a in truth['annotations']])
    for name in names[1:]:
        boxes[name] = json.loads((out / f'{name}_seed{seed}' / 'predictions.bbox.json').read_text())
    columns = []
    for name in names:
        title = np.full((26, SIZE * scale, 3), 255, np.uint8)
        cv2.putText(title, name, (8, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.55, 0, 1, cv2.LINE_AA)
        column = [title]
        for image in truth['images'][:count]:
            shown = cv2.imread(str(data / image['file_name']))[..., ::-1]
            shown = cv2.resize(shown, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
            for box in boxes[name]:
                if box['image_id'] == image['id'] and box['score'] >= threshold:
                    x, y, width, height = (round(v * scale) for v in box['bbox'])
                    colour = colours[box['category_id'] - 1]
                    cv2.rectangle(shown, (x, y), (x + width, y + height), (255, 255, 255), 4)
                    cv2.rectangle(shown, (x, y), (x + width, y + height), colour, 2)
            column.append(shown)
        columns.append(np.concatenate(column))
    file = out / 'detections.jpg'
    cv2.imwrite(str(file), np.concatenate(columns, 1)[..., ::-1])
    return file


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--out', type=Path, default=Path('work_dirs/demo_metr'))
    parser.add_argument(
        '--options',
        nargs='*',
        default=[],
        metavar='KEY=VALUE',
        help='further --cfg-options of all runs, say train_cfg.max_epochs=1 for a quick look',
    )
    args = parser.parse_args(argv)
    os.chdir(ROOT)
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    data = Path(os.environ.get('MMEXTRA_DATA', 'data')) / 'metr_shapes'
    write_data(data)
    seeds = [run_seed(out, data, seed, args.options) for seed in args.seeds]
    (out / 'results.json').write_text(json.dumps(dict(zip(map(str, args.seeds), seeds)), indent=1))
    text = f'{table(seeds)}\n\n{verdict(seeds)}\n'
    (out / 'table.md').write_text(text)
    print(f'{text}\n{picture(out, data, args.seeds[0])}')


if __name__ == '__main__':
    main()
