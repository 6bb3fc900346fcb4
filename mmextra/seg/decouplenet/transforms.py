"""Augmentation that remembers what it did, and the soft labels that go with it."""

from pathlib import Path
from typing import Sequence, Tuple, Union

import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from torchvision.transforms import ColorJitter

from mmextra.engine.arrays import read_arrays
from mmextra.registry import TRANSFORMS


@TRANSFORMS.register_module()
class TrackedRandomSizedCrop(BaseTransform):
    """Resize to a random width, crop and flip, and keep the geometry, so that other maps can follow.

    Required keys: ``img`` and the maps named in ``seg_fields``. Added keys: ``geometry``, a dict with ``size``
    (height, width) after resizing, ``offset`` (y, x) and ``shape`` (height, width) of the crop, and ``flip``;
    and, if asked for, ``full_img``, the image as it came.

    Args:
        width (int): Width to which the random ratio refers, in pixels; the height keeps the aspect.
        crop_size (tuple[int, int]): Height and width of the crop. Smaller images stay as they are.
        ratio_range (tuple[float, float]): Defaults to (0.5, 1.5).
        flip_prob (float): Probability of a horizontal flip. Defaults to 0.5.
        keep_image (bool): Whether to keep the whole image. Defaults to False.
    """

    def __init__(
        self,
        width: int,
        crop_size: Tuple[int, int],
        ratio_range: Tuple[float, float] = (0.5, 1.5),
        flip_prob: float = 0.5,
        keep_image: bool = False,
    ) -> None:
        if not 0 < ratio_range[0] <= ratio_range[1]:
            raise ValueError(f'ratio_range must be two rising positive numbers, got {ratio_range}')
        self.width = width
        self.crop_size = tuple(crop_size)
        self.ratio_range = tuple(ratio_range)
        self.flip_prob = flip_prob
        self.keep_image = keep_image

    def draw(self, height: int, width: int) -> dict:
        """Draw the geometry for an image of that size."""
        new_width = max(int(np.random.uniform(*self.ratio_range) * self.width), 1)
        size = (max(round(height * new_width / width), 1), new_width)
        shape = tuple(min(s, c) for s, c in zip(size, self.crop_size))
        offset = tuple(int(np.random.randint(s - c + 1)) for s, c in zip(size, shape))
        flip = bool(np.random.rand() < self.flip_prob)
        return dict(size=size, offset=offset, shape=shape, flip=flip)

    def transform(self, results: dict) -> dict:
        """Augment the image and its maps alike."""
        image = results['img']
        geometry = self.draw(*image.shape[:2])
        if self.keep_image:
            results['full_img'] = image
        results['img'] = apply(image, geometry, 'bilinear')
        for key in results.get('seg_fields', []):
            results[key] = apply(results[key], geometry, 'nearest')
        (height, width), old = geometry['size'], image.shape
        results.update(
            geometry=geometry,
            img_shape=results['img'].shape[:2],
            scale_factor=(width / old[1], height / old[0]),
            flip=geometry['flip'],
            flip_direction='horizontal' if geometry['flip'] else None,
        )
        return results


def apply(image: np.ndarray, geometry: dict, interpolation: str) -> np.ndarray:
    """Resize, crop and flip an image or a map (H, W[, C])."""
    height, width = geometry['size']
    image = mmcv.imresize(image, (width, height), interpolation=interpolation)
    (y, x), (h, w) = geometry['offset'], geometry['shape']
    image = image[y : y + h, x : x + w]
    return np.ascontiguousarray(image[:, ::-1] if geometry['flip'] else image)


@TRANSFORMS.register_module()
class LoadSoftLabel(BaseTransform):
    """Read what :class:`SoftLabelDumper` stored for an image.

    Required key: ``img_path``. Added key: ``soft_label``, logits (num_classes, h, w), float32.

    Args:
        folder (str): Where the soft labels are.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def transform(self, results: dict) -> dict:
        """Read the file.

        Raises:
            FileNotFoundError: If there is none for this image.
            ValueError: If it is damaged, or holds something else.
        """
        file = self.folder / f'{Path(results["img_path"]).stem}.npy'
        if not file.is_file():
            raise FileNotFoundError(
                f'there is no soft label {file} for {results["img_path"]}: write them with the model of phase 1, '
                'mmextra.SoftLabelDumper and tools/test.py'
            )
        (label,) = read_arrays(file)
        if label.ndim != 3 or label.dtype.kind != 'f':
            raise ValueError(
                f'{file} must hold logits (num_classes, h, w), it holds {label.dtype} {label.shape}'
            )
        results['soft_label'] = label.astype(np.float32, copy=False)
        return results


@TRANSFORMS.register_module()
class TorchColorJitter(BaseTransform):
    """Torchvision's ``ColorJitter``, for images as they are loaded here (BGR, uint8).

    Args:
        brightness, contrast, saturation, hue (float or Sequence[float]): As torchvision's. Default to 0.
    """

    def __init__(
        self,
        brightness: Union[float, Sequence[float]] = 0,
        contrast: Union[float, Sequence[float]] = 0,
        saturation: Union[float, Sequence[float]] = 0,
        hue: Union[float, Sequence[float]] = 0,
    ) -> None:
        self.jitter = ColorJitter(brightness, contrast, saturation, hue)

    def transform(self, results: dict) -> dict:
        """Change the colours of ``img``."""
        rgb = torch.from_numpy(np.ascontiguousarray(results['img'][..., ::-1].transpose(2, 0, 1)))
        rgb = self.jitter(rgb).numpy()
        results['img'] = np.ascontiguousarray(rgb.transpose(1, 2, 0)[..., ::-1])
        return results
