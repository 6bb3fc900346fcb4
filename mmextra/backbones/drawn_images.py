"""Classification sets that are drawn on the fly, for demonstrations that need no download.

Each of their labels asks for something that a backbone may lack: detail and global arrangement at once, a comparison of
objects that lie anywhere, shape and fine pattern at once, the place of things, a label for every token, or an object in
clutter.

Registered here: the datasets ``DrawnImages``, ``ShapePairs`` (with label maps), ``CrossedBars`` and
``ObjectAmongTextures``, and the metric ``FactorAccuracy``.
"""

import copy
from functools import partial
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from numpy.random import Generator

from mmextra.registry import DATASETS, METRICS

PATTERNS = ('rows', 'columns', 'checks', 'dots')
SHAPES = ('disc', 'square', 'triangle', 'cross', 'ring', 'bar')
# Shape and rotation in degrees.
OUTLINES = (
    *(('square', 0), ('square', 45), ('cross', 0), ('cross', 45)),
    *(('triangle', 0), ('triangle', 90), ('triangle', 180), ('triangle', 270)),
)


class DrawnDataset(BaseDataset):
    """Base of datasets that draw an image when it is first asked for, and keep it in memory.

    The same index of the same set always gives the same image.

    Args:
        num_images (int): Size of the set.
        size (int): Side of the images in pixels, at least 32. Defaults to 64.
        seed (int): Tells sets apart, say training and test. Defaults to 0.
        **kwargs: Those of mmengine's ``BaseDataset``, above all ``pipeline``.

    Raises:
        ValueError: If the images are too small to draw on.
    """

    def __init__(self, num_images: int, size: int = 64, seed: int = 0, **kwargs) -> None:
        if size < 32:
            raise ValueError(f'size must be at least 32 pixels to draw on, got {size}')
        self.num_images = num_images
        self.size = size
        self.seed = seed
        self._drawn: Dict[int, dict] = {}
        super().__init__(serialize_data=False, **kwargs)

    def load_data_list(self) -> List[dict]:
        """One entry for each image; the image follows from its index."""
        return [dict(index=i) for i in range(self.num_images)]

    def get_data_info(self, idx: int) -> dict:
        """An image: ``img`` (H, W, 3) uint8, ``gt_label`` and what else a subclass adds."""
        info = super().get_data_info(idx)
        index = info['index']
        if index not in self._drawn:
            drawn = self.draw(np.random.default_rng((self.seed, index)), index)
            self._drawn[index] = {**drawn, 'img': np.clip(drawn['img'], 0, 255).astype(np.uint8)}
        info.update(copy.deepcopy(self._drawn[index]))  # transforms may write into it
        info['img_shape'] = info['ori_shape'] = info['img'].shape[:2]
        return info

    def draw(self, random: Generator, index: int) -> dict:
        """Draw one image from a random stream of its own."""
        raise NotImplementedError

    def noisy_grey(self, random: Generator) -> np.ndarray:
        """A grey background with noise, (H, W, 3) float."""
        return random.uniform(60, 140) + random.normal(0, 20, (self.size, self.size, 3))


@DATASETS.register_module()
class DrawnImages(DrawnDataset):
    """One of three tasks, with equally frequent classes.

    Args:
        task (str): What is drawn, and what the label says:

            - ``'same_colour'``, 2 classes: whether two of four discs have the same colour, of any hues;
            - ``'colours_outline'``, 32 classes: how many colours four small objects have, one to four of six, and which
              of eight outlines all of them have;
            - ``'shape_pattern'``, 20 classes: one of five large shapes, filled with one of four fine patterns.

        num_images (int): Size of the set.
        period (int): Of the patterns of ``'shape_pattern'`` in pixels, at least 2. Defaults to 4.
        patterned_ground (bool): Whether the ground of ``'shape_pattern'`` has one of the patterns, too, so that it
            takes the shape to know which of the two counts. Defaults to False.
        noise (float): Standard deviation of the noise in grey levels. Defaults to 6.
        **kwargs: Those of :class:`DrawnDataset`.

    Raises:
        ValueError: If there is no such task, or no such pattern.

    Example:
        >>> dataset = dict(type='mmextra.DrawnImages', task='same_colour', num_images=4000)
    """

    CLASSES = dict(
        same_colour=['different', 'same'],
        colours_outline=[
            f'{count} {shape} {angle}' for count in (1, 2, 3, 4) for shape, angle in OUTLINES
        ],
        shape_pattern=[f'{shape} {pattern}' for shape in SHAPES[:5] for pattern in PATTERNS],
    )

    def __init__(
        self,
        task: str,
        num_images: int,
        period: int = 4,
        patterned_ground: bool = False,
        noise: float = 6.0,
        **kwargs,
    ) -> None:
        if task not in self.CLASSES:
            raise ValueError(f'task must be one of {", ".join(self.CLASSES)}, got {task!r}')
        if period < 2:
            raise ValueError(f'period must be at least 2 pixels, got {period}')
        self.task = task
        self.period = period
        self.patterned_ground = patterned_ground
        self.noise = noise
        super().__init__(num_images, metainfo=dict(classes=self.CLASSES[task]), **kwargs)

    def draw(self, random: Generator, index: int) -> dict:
        """Draw the image of a class, the classes in turn."""
        label = index % len(self.CLASSES[self.task])
        task = dict(
            same_colour=draw_same_colour,
            colours_outline=draw_colours_outline,
            shape_pattern=partial(
                draw_shape_pattern, period=self.period, ground=self.patterned_ground
            ),
        )[self.task]
        image = task(random, label, self.size)
        return dict(img=image + random.normal(0, self.noise, image.shape), gt_label=label)


@DATASETS.register_module()
class ShapePairs(DrawnDataset):
    """Two objects of different classes side by side; the image has the class of the larger one.

    A class is one of six light outlines on a dark ground, filled or striped: twelve classes.

    Args:
        token_label (str, optional): ``'exact'`` adds label maps for token labeling, in which each
            cell has the class of the object that covers it; ``'shuffled'`` exchanges their cells
            at random. Defaults to None, no label maps.
        label_size (int): Side of the label maps. Defaults to 16.
        **kwargs: Those of :class:`DrawnDataset`.
    """

    METAINFO = dict(classes=tuple(f'{fill} {s}' for s in SHAPES for fill in ('plain', 'striped')))
    # Logit of a cell that an object covers wholly: the share of others is then negligible.
    CONFIDENCE = 30.0

    def __init__(
        self, *args, token_label: Optional[str] = None, label_size: int = 16, **kwargs
    ) -> None:
        if token_label not in (None, 'exact', 'shuffled'):
            raise ValueError(f"token_label must be 'exact', 'shuffled' or None, got {token_label}")
        self.token_label = token_label
        self.label_size = label_size
        super().__init__(*args, **kwargs)

    def draw(self, random: Generator, index: int) -> dict:
        """Draw a pair; the radii differ by a third at least."""
        size = self.size
        classes = random.choice(len(self.METAINFO['classes']), 2, replace=False)
        large = size * random.uniform(0.17, 0.23)
        radii = random.permutation([large, large * random.uniform(0.65, 0.85)])
        x, y = coordinates(size)
        stripes = pattern('rows', x, y, period=6)
        image = random.uniform(50, 100) + random.normal(0, 20, (size, size, 3))
        label = np.zeros((2, 2, self.label_size, self.label_size))
        for k, (cls, radius, column) in enumerate(zip(classes, radii, (0.25, 0.75))):
            centre = (
                size * random.uniform(0.3, 0.7),
                size * (column + random.uniform(-0.02, 0.02)),
            )
            mask = shape_mask(SHAPES[cls // 2], (x - centre[1]) / radius, (y - centre[0]) / radius)
            colour = random.uniform(110, 255, 3)
            image[mask] = colour
            if cls % 2:
                image[mask & (stripes < 0)] = 255 - colour
            cells = mask.reshape(self.label_size, size // self.label_size, self.label_size, -1)
            label[0, k], label[1, k] = self.CONFIDENCE * cells.mean((1, 3)), cls
        info = dict(img=image, gt_label=int(classes[radii.argmax()]))
        if self.token_label:
            if self.token_label == 'shuffled':
                order = random.permutation(self.label_size**2)
                label = label.reshape(2, 2, -1)[..., order].reshape(label.shape)
            info['token_label'] = label.astype(np.float32)
        return info


@DATASETS.register_module()
class CrossedBars(DrawnDataset):
    """A red bar in one of five row bands and a blue one in one of five column bands, in clutter.

    Class ``5 * row + column``: what counts is where things are. Takes the arguments of
    :class:`DrawnDataset`.
    """

    METAINFO = dict(classes=tuple(f'row {r} column {c}' for r in range(5) for c in range(5)))

    def draw(self, random: Generator, index: int) -> dict:
        """Draw both bars over a dozen of grey and green rectangles."""
        size, label = self.size, int(random.integers(25))
        image = self.noisy_grey(random)
        for _ in range(12):
            top, left = random.integers(0, size, 2)
            height, width = random.integers(size // 12, size // 3, 2)
            colour = random.uniform(0, 255) * np.array([1.0, 1.0, 1.0])
            colour[[0, 2]] *= random.uniform(0.2, 1)
            image[top : top + height, left : left + width] = colour
        band, thick = size / 5, max(size // 20, 2)
        row, column = divmod(label, 5)
        for bar, index, channel in ((0, row, 0), (1, column, 2)):
            start = int(band * index + random.uniform(0.1, 0.9) * (band - thick))
            first = int(random.integers(0, size // 2))
            along = slice(first, first + int(random.integers(size // 3, size // 2)))
            across = slice(start, start + thick)
            colour = np.full(3, 40.0)
            colour[channel] = 230
            image[(across, along) if bar == 0 else (along, across)] = colour
        return dict(img=image, gt_label=label)


@DATASETS.register_module()
class ObjectAmongTextures(DrawnDataset):
    """A small object in one cell of a grid, and a texture in each of the others.

    Cells have 16 pixels. The class is the outline of the object, light on a dark ground. Adds ``object_mask`` (H, W),
    True in the cell of the object.

    Args:
        num_images (int): Size of the set.
        size (int): Side of the images in pixels, a multiple of 16. Defaults to 64: fifteen textures.
        **kwargs: Those of :class:`DrawnDataset`.

    Raises:
        ValueError: If the cells do not fill the image.
    """

    CELL = 16
    # Shape and rotation in degrees.
    OBJECTS = (
        *(('disc', 0), ('ring', 0), ('square', 0), ('square', 45), ('triangle', 0)),
        *(('triangle', 180), ('cross', 0), ('cross', 45), ('bar', 0), ('bar', 90)),
    )
    METAINFO = dict(classes=tuple(f'{shape} {angle}' for shape, angle in OBJECTS))

    def __init__(self, num_images: int, size: int = 64, **kwargs) -> None:
        if size % self.CELL:
            raise ValueError(f'size must be a multiple of {self.CELL} pixels, got {size}')
        super().__init__(num_images, size, **kwargs)

    def draw(self, random: Generator, index: int) -> dict:
        """Draw the image of a class, the classes in turn."""
        label, side = index % len(self.OBJECTS), self.size // self.CELL
        cells = np.stack([self.draw_texture(random) for _ in range(side**2)])
        place = int(random.integers(side**2))
        cells[place] = self.draw_object(random, label)
        image = cells.reshape(side, side, self.CELL, self.CELL, 3).swapaxes(1, 2)
        image = image.reshape(self.size, self.size, 3)
        mask = np.kron(np.arange(side**2).reshape(side, side) == place, np.ones((self.CELL,) * 2))
        noisy = image + random.normal(0, 20, image.shape)
        return dict(img=noisy, gt_label=label, object_mask=mask.astype(bool))

    def draw_texture(self, random: Generator) -> np.ndarray:
        """A pattern of two colours, (16, 16, 3)."""
        x, y = coordinates(self.CELL) + random.uniform(0, 8, (2, 1, 1))
        first, second = random.uniform(0, 255, (2, 3))
        marks = pattern(random.choice(PATTERNS), x, y, period=random.integers(4, 9))
        return np.where(marks[..., None] < 0, first, second)

    def draw_object(self, random: Generator, label: int) -> np.ndarray:
        """An object of one colour on its ground, (16, 16, 3)."""
        shape, angle = self.OBJECTS[label]
        radius = random.uniform(6, 7.5)
        x, y = (coordinates(self.CELL) - random.uniform(7, 9, (2, 1, 1))) / radius
        u, v = rotate(x, y, np.radians(angle))
        ground, colour = random.uniform(0, 110, 3), random.uniform(130, 255, 3)
        return np.where(shape_mask(shape, u, v)[..., None], colour, ground)


@METRICS.register_module()
class FactorAccuracy(BaseMetric):
    """Top-1 accuracy of each factor of a class that is a combination of several.

    A class index counts the factors like digits, the last one fastest.

    Args:
        factors (dict[str, int]): Name -> number of values, the slowest first; for example
            ``dict(shape=5, texture=4)``.
        **kwargs: Those of mmengine's ``BaseMetric``.
    """

    default_prefix = 'accuracy'

    def __init__(self, factors: Dict[str, int], **kwargs) -> None:
        super().__init__(**kwargs)
        self.factors = factors

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Keep the predicted and the true class of each sample."""
        for sample in data_samples:
            predicted = sample['pred_score'].argmax()
            self.results.append((int(predicted), int(sample['gt_label'])))

    def compute_metrics(self, results: List[Tuple[int, int]]) -> Dict[str, float]:
        """Share of the samples, in percent, whose factor is right; for each factor."""
        shape = tuple(self.factors.values())
        predicted, true = (np.unravel_index(indices, shape) for indices in zip(*results))
        return {
            name: 100 * float((p == t).mean()) for name, p, t in zip(self.factors, predicted, true)
        }


def draw_same_colour(random: Generator, label: int, size: int) -> np.ndarray:
    """Four discs, of any hues; two of them have one colour where the label is 1."""
    colours = palette(random, 6)[:4]
    if label:
        colours[1] = colours[0]
    return draw_four(random, size, colours, radius=size * 0.1, outline=('disc', 0))


def draw_colours_outline(random: Generator, label: int, size: int) -> np.ndarray:
    """Four small objects of one outline; ``8 * (number of colours - 1) + outline`` is the label."""
    count, outline = divmod(label, len(OUTLINES))
    which = [*range(count + 1), *random.integers(0, count + 1, 3 - count)]
    colours = palette(random, 6, turn=0)[random.permutation(which)]
    return draw_four(random, size, colours, radius=size * 0.06, outline=OUTLINES[outline])


def draw_four(
    random: Generator, size: int, colours: np.ndarray, radius: float, outline: Tuple[str, float]
) -> np.ndarray:
    """Four objects that do not touch, on a plain ground.

    Args:
        random (Generator): Random stream.
        size (int): Side S of the image in pixels.
        colours (np.ndarray): Of the objects, (4, 3).
        radius (float): Of a disc in pixels; other shapes have about that size.
        outline (tuple[str, float]): Shape and rotation in degrees.

    Returns:
        np.ndarray: (S, S, 3) float.
    """
    shape, angle = outline
    cells = random.permutation(16)[:4]  # of a grid of 4 x 4
    x, y = coordinates(size)
    image = np.full((size, size, 3), random.uniform(90, 160))
    for cell, colour in zip(cells, colours):
        at = random.uniform(radius, size / 4 - radius, 2) + size / 4 * np.array(divmod(cell, 4))
        u, v = rotate((x - at[0]) / radius, (y - at[1]) / radius, np.radians(angle))
        image[shape_mask(shape, 0.95 * u, 0.95 * v)] = colour
    return image


def draw_shape_pattern(
    random: Generator, label: int, size: int, period: int, ground: bool
) -> np.ndarray:
    """One large shape in any place and rotation, filled with a fine pattern; the ground has any pattern, or none."""
    shape, texture = divmod(label, len(PATTERNS))
    angle, radius = random.uniform(0, 2 * np.pi), size * random.uniform(0.22, 0.34)
    centre = random.uniform(radius, size - radius, 2)
    x, y = coordinates(size)
    u, v = rotate((x - centre[0]) / radius, (y - centre[1]) / radius, angle)
    inside = shape_mask(SHAPES[shape], u, v)
    fills = []
    for name, colour in zip((PATTERNS[texture], random.choice(PATTERNS)), palette(random, 2)):
        right, down = random.uniform(0, period, 2)
        light = random.uniform(25, 45) * pattern(name, x + right, y + down, period)
        fills.append(colour + light[..., None])
    return np.where(inside[..., None], fills[0], fills[1] if ground else colour)


def shape_mask(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where a shape is.

    Args:
        name (str): One of ``SHAPES``.
        u (np.ndarray): Column of every pixel, from the centre of the shape, in its radii.
        v (np.ndarray): Row of every pixel, likewise.

    Returns:
        np.ndarray: Shaped like ``u``, bool.
    """
    square, far = np.maximum(abs(u), abs(v)) < 0.8, np.hypot(u, v)
    return dict(
        disc=far < 0.95,
        square=square,
        triangle=(v < 0.8) & (abs(u) < (v + 1) / 1.8),
        cross=square & (np.minimum(abs(u), abs(v)) < 0.28),
        ring=(far < 1) & (far > 0.58),
        bar=(abs(u) < 1) & (abs(v) < 0.35),
    )[name]


def palette(random: Generator, count: int, turn: Optional[float] = None) -> np.ndarray:
    """So many well separated colours (count, 3), in random order, their hues turned by that part of the circle."""
    turn = random.uniform() if turn is None else turn
    hues = (np.arange(count) / count + turn) * 2 * np.pi
    colours = 128 + 90 * np.cos(hues[:, None] + np.array([0, 2, 4]) * np.pi / 3)
    return random.permutation(colours)


def rotate(x: np.ndarray, y: np.ndarray, angle: float) -> Tuple[np.ndarray, np.ndarray]:
    """Coordinates in a frame that is turned by so many radians."""
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def coordinates(size: int) -> Tuple[np.ndarray, np.ndarray]:
    """Column and row of every pixel, (size, size) each."""
    return np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)


def pattern(name: str, x: np.ndarray, y: np.ndarray, period: int) -> np.ndarray:
    """A fine pattern of values -1 and 1, with the given period in pixels."""
    across, down = x % period < period / 2, y % period < period / 2
    dark = dict(rows=down, columns=across, checks=across ^ down, dots=across & down)[name]
    return np.where(dark, -1.0, 1.0)
