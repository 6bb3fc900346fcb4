"""Classification sets that are drawn on the fly, for demonstrations that need no download.

Each of their labels asks for something that a backbone may lack: detail and global arrangement at once, a comparison of
objects that lie anywhere, or shape and fine pattern at once.

Registered here: the data set ``DrawnImages``.
"""

import itertools
from typing import List, Tuple

import numpy as np
from mmengine.dataset import BaseDataset

from mmextra.registry import DATASETS

PATTERNS = ('rows', 'columns', 'checks', 'dots')
SHAPES = ('disc', 'square', 'triangle', 'ring', 'cross')


@DATASETS.register_module()
class DrawnImages(BaseDataset):
    """Images that are drawn when they are asked for: the same index of the same set always gives the same image.

    Args:
        task (str): What is drawn, and what the label says:

            - ``'quadrants'``, 18 classes: which two of the quadrants hold a disc of the same colour, and the fine
              pattern of the background (rows, columns or checks of 2 pixels);
            - ``'same_colour'``, 2 classes: whether two of six discs have the same colour;
            - ``'shape_pattern'``, 20 classes: one of five large shapes, filled with one of four fine patterns.

        num_images (int): Size of the set. The classes are equally frequent.
        size (int): Side of the images in pixels, at least 32. Defaults to 64.
        seed (int): Tells sets apart, say training and test. Defaults to 0.
        pipeline (list): Transforms. They are given ``img``, (size, size, 3) uint8, and ``gt_label``. Defaults to
            ``()``.
        **kwargs: Further arguments of mmengine's ``BaseDataset``.

    Raises:
        ValueError: If there is no such task, or the images are too small to draw on.

    Example:
        >>> dataset = dict(type='mmextra.DrawnImages', task='quadrants', num_images=4000)
    """

    CLASSES = dict(
        quadrants=[
            f'{a}{b} {pattern}'
            for a, b in itertools.combinations('1234', 2)
            for pattern in PATTERNS[:3]
        ],
        same_colour=['different', 'same'],
        shape_pattern=[f'{shape} {pattern}' for shape in SHAPES for pattern in PATTERNS],
    )

    def __init__(
        self,
        task: str,
        num_images: int,
        size: int = 64,
        seed: int = 0,
        pipeline: list = (),
        **kwargs,
    ) -> None:
        if task not in self.CLASSES:
            raise ValueError(f'task must be one of {", ".join(self.CLASSES)}, got {task!r}')
        if size < 32:
            raise ValueError(f'size must be at least 32 pixels to draw on, got {size}')
        self.task = task
        self.num_images = num_images
        self.size = size
        self.seed = seed
        super().__init__(
            metainfo=dict(classes=self.CLASSES[task]), pipeline=list(pipeline), **kwargs
        )

    def load_data_list(self) -> List[dict]:
        """One entry for every image."""
        classes = len(self.CLASSES[self.task])
        return [dict(number=i, gt_label=i % classes) for i in range(self.num_images)]

    def get_data_info(self, idx: int) -> dict:
        """The entry of an image, with the image drawn."""
        info = super().get_data_info(idx)
        random = np.random.RandomState([self.seed, info['number']])
        draw = dict(
            quadrants=draw_quadrants, same_colour=draw_discs, shape_pattern=draw_shape_pattern
        )[self.task]
        image = draw(random, info['gt_label'], self.size) + random.normal(
            0, 6, (self.size,) * 2 + (3,)
        )
        info['img'] = image.clip(0, 255).astype(np.uint8)
        info['img_shape'] = info['ori_shape'] = (self.size, self.size)
        return info


def draw_quadrants(random: np.random.RandomState, label: int, size: int) -> np.ndarray:
    """A disc somewhere in each quadrant, two of them of one colour, on a patterned background."""
    pair, texture = divmod(label, 3)
    first, second = list(itertools.combinations(range(4), 2))[pair]
    colours = palette(random, 7)[:4]
    colours[second] = colours[first]
    x, y = coordinates(size)
    stripes = pattern(PATTERNS[texture], x, y, period=2)
    image = random.uniform(90, 160, 3) + random.uniform(12, 24) * stripes[..., None]
    for i, colour in enumerate(colours):
        radius = size * random.uniform(0.09, 0.14)
        centre = random.uniform(radius, size / 2 - radius, 2) + size / 2 * np.array([i % 2, i // 2])
        image[np.hypot(x - centre[0], y - centre[1]) < radius] = colour
    return image


def draw_discs(random: np.random.RandomState, label: int, size: int) -> np.ndarray:
    """Six discs that do not touch; two of them have one colour where the label is 1."""
    colours = palette(random, 9)  # more than discs, so that no colour is missed
    if label:
        colours[1] = colours[0]
    radius = size * 0.07
    cells = random.permutation(16)[:6]  # of a grid of 4 x 4
    x, y = coordinates(size)
    image = np.full((size, size, 3), random.uniform(90, 160))
    for cell, colour in zip(cells, colours):
        at = random.uniform(radius, size / 4 - radius, 2) + size / 4 * np.array(divmod(cell, 4))
        image[np.hypot(x - at[0], y - at[1]) < radius] = colour
    return image


def draw_shape_pattern(random: np.random.RandomState, label: int, size: int) -> np.ndarray:
    """One large shape in any position and rotation, filled with a fine pattern."""
    shape, texture = divmod(label, len(PATTERNS))
    angle, radius = random.uniform(0, 2 * np.pi), size * random.uniform(0.22, 0.34)
    centre = random.uniform(radius, size - radius, 2)
    x, y = coordinates(size)
    u, v = (x - centre[0]) / radius, (y - centre[1]) / radius
    u, v = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
    far = np.hypot(u, v)
    inside = dict(
        disc=far < 0.9,
        square=np.maximum(abs(u), abs(v)) < 0.7,
        triangle=(v > -0.5) & (v + np.sqrt(3) * abs(u) < 1),
        ring=(far < 1) & (far > 0.6),
        cross=(np.minimum(abs(u), abs(v)) < 0.28) & (np.maximum(abs(u), abs(v)) < 0.95),
    )[SHAPES[shape]]
    background, colour = palette(random, 2)
    fill = colour + random.uniform(25, 45) * pattern(PATTERNS[texture], x, y, period=4)[..., None]
    return np.where(inside[..., None], fill, background)


def palette(random: np.random.RandomState, count: int) -> np.ndarray:
    """So many well separated colours (count, 3), in random order."""
    hues = (np.arange(count) / count + random.uniform()) * 2 * np.pi
    colours = 128 + 90 * np.cos(hues[:, None] + np.array([0, 2, 4]) * np.pi / 3)
    return random.permutation(colours)


def coordinates(size: int) -> Tuple[np.ndarray, np.ndarray]:
    """Column and row of every pixel, (size, size) each."""
    return np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)


def pattern(name: str, x: np.ndarray, y: np.ndarray, period: int) -> np.ndarray:
    """A fine pattern of values -1 and 1, with the given period in pixels."""
    across, down = x % period < period / 2, y % period < period / 2
    dark = dict(rows=down, columns=across, checks=across ^ down, dots=across & down)[name]
    return np.where(dark, -1.0, 1.0)
