"""Zero-shot segmentation without CLIP: classes are vectors, images are grids of noisy ones.

A demonstration of what TagCLIP's trusty token does (arXiv 2304.07547): an unseen class lies near a seen
one, and a model trained on seen labels takes the one for the other. Registered here: the data set
``ClassVectorGrids``, and in the place of CLIP's two towers ``ClassVectorBackbone`` and
``ClassVectorEncoder``.
"""

from typing import Dict, List, Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModule
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor

from mmextra.engine.arguments import check
from mmextra.registry import DATASETS, MODELS


def class_vectors(
    num_seen: int, num_novel: int, dim: int, cosine: float, seed: int
) -> Tuple[List[str], np.ndarray]:
    """Draw the vectors of seen classes and, behind them, of novel ones near the first seen ones.

    Args:
        num_seen, num_novel (int): Number of classes.
        dim (int): Dimensions D.
        cosine (float): Cosine between the novel class i and the seen class i.
        seed (int): Seed.

    Returns:
        tuple: The names of the classes, and their vectors of length 1, (C, D) float32.
    """
    for name, value in dict(num_seen=num_seen, num_novel=num_novel, dim=dim).items():
        check(name, name, value, int)
    if not 0 <= num_novel <= num_seen:
        raise ValueError(f'num_novel must be 0 to num_seen={num_seen}, got {num_novel}')
    if not 0 <= cosine <= 1:
        raise ValueError(f'cosine must lie in [0, 1], got {cosine}')
    draw = np.random.RandomState(seed)
    seen = draw.randn(num_seen, dim)
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    near, away = seen[:num_novel], draw.randn(num_novel, dim)
    away -= (away * near).sum(1, keepdims=True) * near
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    novel = cosine * near + np.sqrt(1 - cosine**2) * away
    names = [f'seen {i}' for i in range(num_seen)] + [f'novel near {i}' for i in range(num_novel)]
    return names, np.concatenate((seen, novel)).astype(np.float32)


@DATASETS.register_module()
class ClassVectorGrids(BaseDataset):
    """Grids of noisy class vectors, in 2 to 4 rectangles of one class each.

    The same index of the same set gives the same grid. Samples are as mmseg's ``PackSegInputs`` makes
    them: ``inputs`` (D, size, size) and the labels.

    Args:
        num_images (int): Size of the set.
        vectors (dict): ``num_seen``, ``num_novel``, ``dim``, ``cosine`` and ``seed``, see
            ``class_vectors``.
        size (int): Side of the grids. Defaults to 16.
        noise (float): Length of the noise that is added to a vector of length 1, in the mean.
            Defaults to 1.
        seed (int): Tells sets apart, say training and test. Defaults to 0.
        **kwargs: Further arguments of mmengine's ``BaseDataset``.

    Raises:
        ValueError: If there is no room for 4 rectangles.
    """

    def __init__(
        self,
        num_images: int,
        vectors: Dict[str, float],
        size: int = 16,
        noise: float = 1.0,
        seed: int = 0,
        **kwargs,
    ) -> None:
        if size < 8:
            raise ValueError(f'size must be at least 8 to cut 4 rectangles from, got {size}')
        names, self.vectors = class_vectors(**vectors)
        self.num_images = num_images
        self.size = size
        self.noise = noise
        self.seed = seed
        palette = np.random.RandomState(1).randint(0, 255, (len(names), 3)).tolist()
        super().__init__(metainfo=dict(classes=names, palette=palette), **kwargs)

    def load_data_list(self) -> List[dict]:
        """One entry for every image."""
        return [dict(number=i) for i in range(self.num_images)]

    def prepare_data(self, idx: int) -> dict:
        """Draw one image and its labels."""
        draw = np.random.RandomState((self.seed * 1_000_003 + idx) % 2**32)
        label = self.rectangles(draw)
        grid = self.vectors[label]  # (H, W, D)
        grid = grid + draw.randn(*grid.shape) * self.noise / np.sqrt(grid.shape[-1])
        shape = (self.size, self.size)
        sample = SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, img_path=str(idx)))
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(label)[None])
        inputs = torch.from_numpy(grid).float().permute(2, 0, 1).contiguous()
        return dict(inputs=inputs, data_samples=sample)

    def rectangles(self, draw: np.random.RandomState) -> np.ndarray:
        """Cut the grid into 2 to 4 rectangles of different classes, (size, size) int64."""
        boxes = [(0, 0, self.size, self.size)]  # top, left, bottom, right
        for _ in range(draw.randint(1, 4)):
            boxes.sort(key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
            largest = boxes.pop()
            axis = int(largest[3] - largest[1] > largest[2] - largest[0])
            side = largest[axis + 2] - largest[axis]
            cut = largest[axis] + draw.randint(side // 4, side - side // 4)
            first, second = list(largest), list(largest)
            first[axis + 2] = second[axis] = cut
            boxes += [tuple(first), tuple(second)]
        label = np.empty((self.size, self.size), np.int64)
        classes = draw.permutation(len(self.vectors))
        for (top, left, bottom, right), name in zip(boxes, classes):
            label[top:bottom, left:right] = name
        return label


@MODELS.register_module()
class ClassVectorBackbone(BaseModule):
    """Hands grids (B, D, h, w) on as maps of vectors of length 1, with their mean as the embedding."""

    patch_size = 1

    def forward(self, x: Tensor) -> Tuple[Tuple[Tensor], Tensor]:
        """Normalise the map, and pool it."""
        feature = F.normalize(x, dim=1)
        return (feature,), F.normalize(feature.mean((2, 3)), dim=1)


@MODELS.register_module()
class ClassVectorEncoder(BaseModule):
    """Gives the class vectors in the place of text embeddings.

    Args:
        vectors (dict): The same as for ``ClassVectorGrids``.
        init_cfg (dict, optional): Has no effect but mmengine's. Defaults to None.
    """

    def __init__(self, vectors: Dict[str, float], init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg)
        self.vocabulary, rows = class_vectors(**vectors)
        self.register_buffer('rows', torch.from_numpy(rows), persistent=False)

    def forward(self) -> Tensor:
        """The vectors, (C, D)."""
        return self.rows
