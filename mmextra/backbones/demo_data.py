"""Drawn image sets for the demonstrations of token labeling and Vision Permutator.

As ``mmextra.DrawnImages``, every image is drawn when it is asked for, from its own random stream.

Registered here: the datasets ``ShapePairs``, with label maps, and ``CrossedBars``; and the metric
``FactorAccuracy``, for these and for ``DrawnImages``.
"""

from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric

from mmextra.backbones.drawn_images import coordinates, pattern
from mmextra.registry import DATASETS, METRICS

SHAPES = ('disc', 'square', 'triangle', 'cross', 'ring', 'bar')


def shape_mask(name: str, size: int, centre: Sequence[float], radius: float) -> np.ndarray:
    """Pixels of a shape.

    Args:
        name (str): One of ``SHAPES``.
        size (int): Side of the image.
        centre (Sequence[float]): Row and column of its centre.
        radius (float): Half its extent.

    Returns:
        np.ndarray: (size, size), bool.
    """
    x, y = coordinates(size)
    y, x = (y - centre[0]) / radius, (x - centre[1]) / radius
    inside = np.maximum(abs(x), abs(y)) <= 0.9
    distance = np.hypot(x, y)
    return {
        'disc': distance <= 1,
        'square': inside,
        'triangle': (y <= 0.8) & (abs(x) <= (y + 1) / 1.8),
        'cross': inside & (np.minimum(abs(x), abs(y)) <= 0.3),
        'ring': (distance <= 1) & (distance >= 0.55),
        'bar': (abs(x) <= 1) & (abs(y) <= 0.35),
    }[name]


class DrawnDataset(BaseDataset):
    """Base of datasets that draw their images.

    Args:
        num_images (int): Number of images.
        size (int): Side of the images in pixels. Defaults to 64.
        seed (int): Of the random streams; give another one for validation. Defaults to 0.
        **kwargs: Those of mmengine's ``BaseDataset``, above all ``pipeline``.
    """

    def __init__(self, num_images: int, size: int = 64, seed: int = 0, **kwargs) -> None:
        self.num_images = num_images
        self.size = size
        self.seed = seed
        super().__init__(serialize_data=False, **kwargs)

    def load_data_list(self) -> List[dict]:
        """One entry for each image; the image follows from its index."""
        return [dict(index=i) for i in range(self.num_images)]

    def get_data_info(self, idx: int) -> dict:
        """Draw an image: ``img`` (H, W, 3) uint8, ``gt_label`` and what else a subclass adds."""
        info = super().get_data_info(idx)
        rng = np.random.default_rng((self.seed, info['index']))
        info.update(self.draw(rng))
        info['img'] = np.clip(info['img'], 0, 255).astype(np.uint8)
        info['img_shape'] = info['ori_shape'] = info['img'].shape[:2]
        return info

    def draw(self, rng: np.random.Generator) -> dict:
        """Draw one image from a random stream."""
        raise NotImplementedError

    def background(self, rng: np.random.Generator) -> np.ndarray:
        """A grey background with noise, (H, W, 3) float."""
        grey = rng.uniform(60, 140)
        return grey + rng.normal(0, 20, (self.size, self.size, 3))


@DATASETS.register_module()
class ShapePairs(DrawnDataset):
    """Two objects of different classes side by side; the image has the class of the larger one.

    A class is one of six outlines, filled or striped: twelve classes.

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

    def draw(self, rng: np.random.Generator) -> dict:
        """Draw a pair; the radii differ by a third at least."""
        size = self.size
        classes = rng.choice(len(self.METAINFO['classes']), 2, replace=False)
        large = size * rng.uniform(0.17, 0.23)
        radii = rng.permutation([large, large * rng.uniform(0.55, 0.75)])
        image, label = self.background(rng), np.zeros((2, 2, self.label_size, self.label_size))
        for k, (cls, radius, column) in enumerate(zip(classes, radii, (0.25, 0.75))):
            centre = (size * rng.uniform(0.3, 0.7), size * (column + rng.uniform(-0.02, 0.02)))
            mask = shape_mask(SHAPES[cls // 2], size, centre, radius)
            colour = rng.uniform(0, 255, 3)
            image[mask] = colour
            if cls % 2:
                image[mask & (pattern('rows', *coordinates(size), period=6) < 0)] = 255 - colour
            cells = mask.reshape(self.label_size, size // self.label_size, self.label_size, -1)
            label[0, k], label[1, k] = self.CONFIDENCE * cells.mean((1, 3)), cls
        info = dict(img=image, gt_label=int(classes[radii.argmax()]))
        if self.token_label:
            if self.token_label == 'shuffled':
                order = rng.permutation(self.label_size**2)
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

    def draw(self, rng: np.random.Generator) -> dict:
        """Draw both bars over a dozen of grey and green rectangles."""
        size, label = self.size, int(rng.integers(25))
        image = self.background(rng)
        for _ in range(12):
            top, left = rng.integers(0, size, 2)
            height, width = rng.integers(size // 12, size // 3, 2)
            colour = rng.uniform(0, 255) * np.array([1.0, 1.0, 1.0])
            colour[[0, 2]] *= rng.uniform(0.2, 1)
            image[top : top + height, left : left + width] = colour
        band, thick = size / 5, max(size // 20, 2)
        row, column = divmod(label, 5)
        for bar, index, channel in ((0, row, 0), (1, column, 2)):
            start = int(band * index + rng.uniform(0.1, 0.9) * (band - thick))
            first = int(rng.integers(0, size // 2))
            along = slice(first, first + int(rng.integers(size // 3, size // 2)))
            across = slice(start, start + thick)
            colour = np.full(3, 40.0)
            colour[channel] = 230
            image[(across, along) if bar == 0 else (along, across)] = colour
        return dict(img=image, gt_label=label)


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
