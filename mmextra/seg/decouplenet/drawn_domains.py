"""Drawn scenes in two domains: a segmentation set for demonstrations, with nothing to download."""

from typing import List

import cv2
import numpy as np
from mmengine.dataset import BaseDataset

from mmextra.registry import DATASETS

CLASSES = ('background', 'disc', 'square', 'triangle', 'ring')
# Mean hue of each shape, in degrees; the background has any hue, pale.
HUES = (None, 0, 75, 150, 235)
PALETTE = [[90, 90, 90], [220, 40, 40], [150, 200, 40], [40, 200, 130], [60, 60, 220]]


@DATASETS.register_module()
class DrawnDomains(BaseDataset):
    """Images of coloured shapes with labels for every pixel, drawn when they are asked for.

    The target domain is the source domain as another camera might see it: hues rotated, gamma changed, noise
    added. The same index of the same set always gives the same image, and in both domains the same scene.

    Args:
        domain (str): ``'source'`` or ``'target'``.
        num_images (int): Size of the set.
        size (int): Side of the images in pixels, at least 32. Defaults to 64.
        seed (int): Tells sets apart, say training and test. Defaults to 0.
        hue, gamma, noise (float): The shift between the domains: degrees, exponent of the brightness, standard
            deviation (of 255). Default to 30, 1.7 and 14.
        pipeline (list): Transforms; they are given ``img`` (size, size, 3), BGR, and ``gt_seg_map``. Defaults to
            ``()``.
        **kwargs: Further arguments of mmengine's ``BaseDataset``.

    Raises:
        ValueError: If the domain is unknown or the images are too small.
    """

    def __init__(
        self,
        domain: str,
        num_images: int,
        size: int = 64,
        seed: int = 0,
        hue: float = 30,
        gamma: float = 1.7,
        noise: float = 14,
        pipeline: list = (),
        **kwargs,
    ) -> None:
        if domain not in ('source', 'target'):
            raise ValueError(f'domain must be source or target, got {domain!r}')
        if size < 32:
            raise ValueError(f'size must be at least 32 pixels to draw on, got {size}')
        self.domain = domain
        self.num_images = num_images
        self.size = size
        self.seed = seed
        self.shift = (hue, gamma, noise)
        metainfo = dict(classes=CLASSES, palette=PALETTE)
        super().__init__(metainfo=metainfo, pipeline=list(pipeline), **kwargs)

    def load_data_list(self) -> List[dict]:
        """One entry for every image, with a name in the place of a path."""
        return [dict(img_path=f'{self.domain}_{self.seed}_{i:05d}') for i in range(self.num_images)]

    def get_data_info(self, idx: int) -> dict:
        """The entry of an image, with image and labels drawn."""
        info = super().get_data_info(idx)
        random = np.random.RandomState([self.seed, info['sample_idx']])
        hsv, labels = draw_scene(random, self.size)
        if self.domain == 'target':
            hue, gamma, noise = self.shift
            hsv[..., 0] = (hsv[..., 0] + hue) % 360
            hsv[..., 2] **= gamma
        else:
            noise = 4
        bgr = cv2.cvtColor(hsv.astype(np.float32), cv2.COLOR_HSV2BGR) * 255
        bgr += random.normal(0, noise, bgr.shape)
        info['img'] = bgr.clip(0, 255).astype(np.uint8)
        info['gt_seg_map'] = labels
        info['seg_fields'] = ['gt_seg_map']
        info['img_shape'] = info['ori_shape'] = (self.size, self.size)
        info['reduce_zero_label'] = False
        return info


def draw_scene(random: np.random.RandomState, size: int):
    """Two to five shapes on a pale, uneven background.

    Returns:
        tuple: Hue in degrees, saturation and value in [0, 1] as (size, size, 3); labels (size, size), uint8.
    """
    x, y = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    slope = random.uniform(-0.2, 0.2, 2)
    value = random.uniform(0.45, 0.75) + slope[0] * x / size + slope[1] * y / size
    hsv = np.stack([np.full_like(x, random.uniform(0, 360)), np.full_like(x, 0.12), value], -1)
    labels = np.zeros((size, size), np.uint8)
    for _ in range(random.randint(2, 6)):
        label = random.randint(1, len(CLASSES))
        radius = size * random.uniform(0.13, 0.24)
        centre = random.uniform(radius, size - radius, 2)
        angle = random.uniform(0, 2 * np.pi)
        u, v = (x - centre[0]) / radius, (y - centre[1]) / radius
        u, v = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
        inside = (
            np.hypot(u, v) < 0.95,
            np.maximum(abs(u), abs(v)) < 0.8,
            (v > -0.5) & (v + np.sqrt(3) * abs(u) < 1),
            (np.hypot(u, v) < 1) & (np.hypot(u, v) > 0.5),
        )[label - 1]
        colour = (
            (HUES[label] + random.normal(0, 9)) % 360,
            random.uniform(0.45, 0.85),
            random.uniform(0.45, 0.95),
        )
        hsv[inside] = colour
        labels[inside] = label
    hsv[..., 2] = (hsv[..., 2] + random.normal(0, 0.02, value.shape)).clip(0, 1)
    return hsv, labels
