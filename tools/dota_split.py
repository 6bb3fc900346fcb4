"""Cuts DOTA images into patches with their objects; the sub-command ``dota-split`` of
prepare_data.py."""

import math
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff')
HEADERS = ('imagesource:', 'gsd:')
FURTHEST = 1e6  # pixels; the largest images of DOTA are 30,000 wide
CUT = 2  # difficulty of objects that a window cuts


class SplitError(Exception):
    """What the user has to mend."""


class Settings(NamedTuple):
    """How images are cut.

    Attributes:
        size, gap (int): Side of the windows, and how much neighbours share, in pixels at rate 1.
        rates (tuple[float]): Scales of the image; at rate r windows are ``size / r`` pixels wide.
        image_part (float): Windows are kept if more than this part of them is image; the best if
            none is.
        object_part (float): Objects are kept if at least this part of their horizontal box is in
            the window.
        padding (tuple[int]): Colour, blue green red, of what is not image.
    """

    size: int = 1024
    gap: int = 200
    rates: Tuple[float, ...] = (1.0,)
    image_part: float = 0.6
    object_part: float = 0.7
    padding: Tuple[int, int, int] = (104, 116, 124)


class Objects(NamedTuple):
    """Objects of an image: corners (N, 8), and class and difficulty as they are written."""

    quads: np.ndarray
    names: List[str]
    difficulties: List[str]


class Counts(NamedTuple):
    """What became of one image."""

    name: str
    patches: int = 0
    objects: int = 0
    placed: int = 0

    @classmethod
    def read(cls, line: str) -> 'Counts':
        """The counts of a line ``name,patches,objects,placed``."""
        name, *numbers = line.rsplit(',', 3)
        return cls(name, *map(int, numbers))


def windows_of(width: int, height: int, settings: Settings) -> np.ndarray:
    """The windows (x1, y1, x2, y2), (W, 4), of an image; integers."""
    found = []
    for rate in settings.rates:
        size, gap = int(settings.size / rate), int(settings.gap / rate)
        columns, rows = (starts(side, size, size - gap) for side in (width, height))
        x, y = (v.ravel() for v in np.meshgrid(columns, rows))
        found.append(np.stack([x, y, x + size, y + size], 1))
    windows = np.concatenate(found)
    inside = np.minimum(windows[:, 2:], (width, height)) - windows[:, :2]
    part = inside.prod(1) / (windows[:, 2:] - windows[:, :2]).prod(1)
    kept = part > settings.image_part
    if not kept.any():
        kept = part >= part.max() - 0.01
    return windows[kept]


def starts(side: int, size: int, step: int) -> np.ndarray:
    """Where windows start along one side; the last is shifted back into the image."""
    count = 1 if side <= size else math.ceil((side - size) / step) + 1
    found = step * np.arange(count)
    if count > 1:
        found[-1] = side - size
    return found


def parts_inside(quads: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Which part of the horizontal boxes around quadrilaterals (N, 8) is in a window; (N, )."""
    points = quads.reshape(-1, 4, 2)
    low, high = points.min(1), points.max(1)
    shared = (np.minimum(high, window[2:]) - np.maximum(low, window[:2])).clip(0)
    return shared.prod(1) / (high - low).prod(1).clip(1e-6)


def objects_in(objects: Objects, window: np.ndarray, settings: Settings) -> Tuple[np.ndarray, str]:
    """The objects of a window.

    Returns:
        tuple: Their indices, and the lines of the annotation file.
    """
    if not len(objects.quads):
        return np.zeros(0, int), ''
    chosen = (parts_inside(objects.quads, window) >= settings.object_part).nonzero()[0]
    lines = []
    for i in chosen:
        points = objects.quads[i].reshape(4, 2)
        cut = (points < window[:2]).any() or (points > window[2:]).any()
        numbers = ' '.join(f'{v:.1f}' for v in (points - window[:2]).ravel())
        lines.append(f'{numbers} {objects.names[i]} {CUT if cut else objects.difficulties[i]}\n')
    return chosen, ''.join(lines)


def read_objects(file: Path) -> Objects:
    """Read an annotation file.

    Raises:
        SplitError: If a line is not in the format of DOTA.
    """
    quads, names, difficulties = [], [], []
    try:
        text = file.read_text('utf-8-sig').split('\n')
    except UnicodeDecodeError as error:
        raise SplitError(f'{file} is no text in UTF-8: {error}') from error
    for number, line in enumerate(text, 1):
        fields = line.split()
        if not fields or line.startswith(HEADERS):
            continue
        try:
            quad, name = [float(v) for v in fields[:8]], fields[8]
        except (ValueError, IndexError):
            quad = [math.nan]
        if not all(abs(v) < FURTHEST for v in quad):
            raise SplitError(
                f'{file}:{number}: expected x1 y1 x2 y2 x3 y3 x4 y4 class difficulty, found {line!r}'
            )
        quads.append(quad)
        names.append(name)
        difficulties.append(fields[9] if len(fields) > 9 else '0')
    return Objects(np.array(quads, float).reshape(-1, 8), names, difficulties)


def cut_image(job: Tuple[Path, Optional[Path], Path, Settings]) -> Counts:
    """Write all patches of one image, and their annotations if it has some."""
    path, labels, out, settings = job
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise SplitError(f'{path} cannot be read as an image')
    height, width = image.shape[:2]
    objects = read_objects(labels) if labels else None
    windows, placed = windows_of(width, height, settings), set()
    for window in windows:
        x1, y1, x2, y2 = window
        pixels = image[y1:y2, x1:x2]
        pixels = cv2.copyMakeBorder(
            pixels,
            *(0, y2 - y1 - pixels.shape[0], 0, x2 - x1 - pixels.shape[1]),
            cv2.BORDER_CONSTANT,
            value=settings.padding,
        )
        name = f'{path.stem}__{x2 - x1}__{x1}___{y1}'
        if not cv2.imwrite(str(out / 'images' / f'{name}.png'), pixels):
            raise SplitError(f'{out / "images" / name}.png cannot be written')
        if objects:
            chosen, lines = objects_in(objects, window, settings)
            placed.update(chosen.tolist())
            (out / 'annfiles' / f'{name}.txt').write_text(lines)
    return Counts(path.stem, len(windows), len(objects.quads) if objects else 0, len(placed))


def jobs(sources: Sequence[Path], out: Path, settings: Settings) -> List[tuple]:
    """One job for each image below ``SOURCE/images``; its labels are in ``SOURCE/labelTxt``.

    Raises:
        SplitError: If there are no images, if two have the same name, or if only some have labels.
    """
    found = []
    for source in sources:
        paths = sorted(p for p in (source / 'images').glob('*') if p.suffix.lower() in SUFFIXES)
        if not paths:
            raise SplitError(f'{source / "images"} holds no images ({", ".join(SUFFIXES)})')
        labels = source / 'labelTxt'
        files = [labels / f'{p.stem}.txt' if labels.is_dir() else None for p in paths]
        found += zip(paths, files)
    absent = [path for path, file in found if not (file and file.is_file())]
    if absent and any(file for _, file in found):
        raise SplitError(
            f'{len(absent)} of {len(found)} images have no labels, such as {absent[0]}: expected '
            'labelTxt/NAME.txt beside images/'
        )
    names = Counter(path.stem for path, _ in found)
    if twice := [name for name, count in names.items() if count > 1]:
        raise SplitError(f'{len(twice)} names are there more than once, such as {twice[0]}')
    return [(path, file, out, settings) for path, file in found]


def split(todo: List[tuple], workers: int) -> Iterator[Counts]:
    """Do the jobs, in ``workers`` processes; the counts of each as it is done, in order."""
    if workers < 2:
        yield from map(cut_image, todo)
        return
    with ProcessPoolExecutor(workers) as pool:
        try:
            yield from pool.map(cut_image, todo)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
