"""Loading label maps, and augmentations that keep image and label map together."""

import copy
import math
from pathlib import Path
from typing import Tuple

import numpy as np
import torch
from mmcv.transforms import BaseTransform, RandomFlip
from mmpretrain.datasets.transforms import RandAugment, RandomResizedCrop, Rotate, Shear, Translate
from scipy.ndimage import affine_transform

from mmextra.engine.arrays import read_arrays
from mmextra.registry import TRANSFORMS

Affine = Tuple[float, float, float, float, float, float]


def warp_label(label: np.ndarray, matrix: Affine) -> np.ndarray:
    """Warp a label map, nearest neighbour.

    Args:
        label (np.ndarray): Values and class ids, (2, k, H, W).
        matrix (tuple[float]): ``(m0, ..., m5)``: cell (r, c) takes what is at row
            ``m0 r + m1 c + m2`` and column ``m3 r + m4 c + m5``.

    Returns:
        np.ndarray: (2, k, H, W). Beyond the border values are 0, ids those of the nearest cell.
    """
    m0, m1, m2, m3, m4, m5 = matrix
    linear, offset = [[m0, m1], [m3, m4]], [m2, m5]
    out = np.empty_like(label)
    for plane, mode in ((0, 'constant'), (1, 'nearest')):
        for j, source in enumerate(label[plane]):
            out[plane, j] = affine_transform(source, linear, offset, order=0, mode=mode)
    return out


def shear_x(label: np.ndarray, factor: float) -> np.ndarray:
    """Shear a label map: row r takes what lies ``factor * r`` further to the right."""
    return warp_label(label, (1, 0, 0, factor, 1, 0))


def shear_y(label: np.ndarray, factor: float) -> np.ndarray:
    """Shear a label map: column c takes what lies ``factor * c`` further down."""
    return warp_label(label, (1, factor, 0, 0, 1, 0))


def translate_x(label: np.ndarray, fraction: float) -> np.ndarray:
    """Move a label map to the left by a fraction of its width."""
    return warp_label(label, (1, 0, 0, 0, 1, fraction * label.shape[-1]))


def translate_y(label: np.ndarray, fraction: float) -> np.ndarray:
    """Move a label map up by a fraction of its height."""
    return warp_label(label, (1, 0, fraction * label.shape[-2], 0, 1, 0))


def rotate(label: np.ndarray, degrees: float) -> np.ndarray:
    """Turn a label map counter-clockwise about (H/2, W/2)."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    row, column = label.shape[-2] / 2, label.shape[-1] / 2
    return warp_label(
        label,
        (
            cos,
            sin,
            row - cos * row - sin * column,
            -sin,
            cos,
            column + sin * row - cos * column,
        ),
    )


def _require_before_crop(transform: BaseTransform, results: dict) -> None:
    if 'crop_coords' in results:
        raise ValueError(
            f'{type(transform).__name__} must stand before TokenLabelRandomResizedCrop in the '
            'pipeline: the recorded crop refers to the label map as it then is'
        )


@TRANSFORMS.register_module()
class LoadTokenLabel(BaseTransform):
    """Load the label map of an image.

    The map of ``<class>/<name>.<anything>`` is ``<data_root>/<class>/<name><suffix>``, where
    ``<name>`` ends at the first dot of the file name. ``.pt`` files hold a tensor (2, k, H, W) of
    values and class ids, as ``tools/generate_token_label.py`` writes them and the authors publish
    them; ``.npz`` files hold ``values`` and ``ids``, (k, H, W) each.

    Required keys: ``img_path``. Added keys: ``token_label``, float32 (2, k, H, W).

    Args:
        data_root (str): Folder of the label maps, with one folder for each class.
        suffix (str): ``'.pt'`` or ``'.npz'``. Defaults to ``'.pt'``.

    Raises:
        ValueError: If ``suffix`` is another, or a file holds something else.
        FileNotFoundError: If an image has no label map.
    """

    def __init__(self, data_root: str, suffix: str = '.pt') -> None:
        if suffix not in ('.pt', '.npz'):
            raise ValueError(f"suffix must be '.pt' or '.npz', got {suffix!r}")
        self.data_root = Path(data_root)
        self.suffix = suffix

    def transform(self, results: dict) -> dict:
        """Add the label map to ``results``."""
        image = Path(results['img_path'])
        path = self.data_root / image.parent.name / (image.name.partition('.')[0] + self.suffix)
        if not path.is_file():
            raise FileNotFoundError(
                f'{image} has no label map {path}: check data_root and suffix of LoadTokenLabel, '
                'or write the maps with tools/generate_token_label.py'
            )
        try:
            if self.suffix == '.pt':
                label = torch.load(path, map_location='cpu', weights_only=True)
                label = label.float().numpy() if isinstance(label, torch.Tensor) else np.empty(0)
            else:
                label = np.stack(read_arrays(path, 'values', 'ids')).astype(np.float32)
        except Exception as error:  # torch raises whatever a damaged file happens to cause
            raise ValueError(f'{path} cannot be read as a label map: {error}') from error
        if label.ndim != 4 or label.shape[0] != 2 or not label.size:
            raise ValueError(
                f'{path} must hold values and class ids, (2, k, H, W); it holds {label.shape}'
            )
        if not np.isfinite(label).all() or label[1].min() < 0:
            raise ValueError(f'{path} must hold finite values, and class ids that count from 0')
        results['token_label'] = label
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(data_root={str(self.data_root)!r}, suffix={self.suffix!r})'


@TRANSFORMS.register_module()
class TokenLabelRandomFlip(RandomFlip):
    """The host's ``RandomFlip``, which flips the label map along.

    Modified keys: also ``token_label``, where there is one. Takes the arguments of ``RandomFlip``.
    """

    AXES = dict(horizontal=(-1,), vertical=(-2,), diagonal=(-2, -1))

    def _flip(self, results: dict) -> None:
        _require_before_crop(self, results)
        super()._flip(results)
        if 'token_label' in results:
            axes = self.AXES[results['flip_direction']]
            results['token_label'] = np.ascontiguousarray(np.flip(results['token_label'], axes))


@TRANSFORMS.register_module()
class TokenLabelRandAugment(RandAugment):
    """The host's ``RandAugment``, whose rotations, shears and translations move the label map too.

    The map, as the reference has it, is warped by the magnitude drawn for the image; on images
    that are not square, sheared and rotated labels are therefore slightly off.

    Modified keys: ``img`` and, where there is one, ``token_label``. Takes the arguments of
    ``RandAugment``. Goes before the crop, on the full image, as the label map covers that.
    """

    # The host turns clockwise and moves content by its magnitude; a label map takes from there.
    WARPS = {
        (Rotate, None): rotate,
        (Shear, 'horizontal'): shear_x,
        (Shear, 'vertical'): shear_y,
        (Translate, 'horizontal'): translate_x,
        (Translate, 'vertical'): translate_y,
    }

    def transform(self, results: dict) -> dict:
        """Apply randomly chosen operations to image and label map."""
        _require_before_crop(self, results)
        for i in self.random_policy_indices():
            operation = self.transforms[i]
            warp = self.WARPS.get((type(operation), getattr(operation, 'direction', None)))
            if warp is None or 'token_label' not in results:
                results = operation(results)
            elif not operation.random_disable():
                name = 'angle' if isinstance(operation, Rotate) else 'magnitude'
                magnitude = getattr(operation, name)
                if magnitude is None:
                    magnitude = operation.random_magnitude()
                magnitude = operation.random_negative(magnitude)
                drawn = copy.copy(operation)
                drawn.prob, drawn.random_negative_prob = 1.0, 0.0
                setattr(drawn, name, magnitude)
                results = drawn(results)
                results['token_label'] = warp(results['token_label'], -magnitude)
        return results


@TRANSFORMS.register_module()
class TokenLabelRandomResizedCrop(RandomResizedCrop):
    """The host's ``RandomResizedCrop``, which records the crop and leaves the label map whole.

    The map is cropped by :class:`TokenLabelDataPreprocessor`, with RoIAlign. Must come after
    ``TokenLabelRandomFlip`` and ``TokenLabelRandAugment``.

    Added keys: ``crop_coords``, (top, left, height, width) as fractions of the image.

    Args:
        scale (int | Sequence[int]): Output size (h, w).
        interpolation (str): As in ``RandomResizedCrop``; or ``'random'``, bilinear or bicubic
            with equal chance, as the reference recipes have it. Defaults to ``'bilinear'``.
        **kwargs: Those of ``RandomResizedCrop``.
    """

    def __init__(self, scale, interpolation: str = 'bilinear', **kwargs) -> None:
        self.random_interpolation = interpolation == 'random'
        super().__init__(
            scale,
            interpolation='bilinear' if self.random_interpolation else interpolation,
            **kwargs,
        )

    def transform(self, results: dict) -> dict:
        """Crop, resize, and record where the crop was."""
        height, width = results['img'].shape[:2]
        crop = self.rand_crop_params(results['img'])
        drawn = copy.copy(self)
        drawn.rand_crop_params = lambda img: crop
        if self.random_interpolation:
            drawn.interpolation = str(np.random.choice(['bilinear', 'bicubic']))
        results = RandomResizedCrop.transform(drawn, results)
        size = (height, width, height, width)
        results['crop_coords'] = np.array(crop, np.float32) / np.array(size, np.float32)
        return results
