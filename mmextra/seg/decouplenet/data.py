"""Labelled source and unlabelled target images, side by side."""

import io
import logging
import random as python_random
from contextlib import contextmanager, nullcontext
from itertools import count, islice
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from mmcv.transforms import LoadAnnotations as AnyLoadAnnotations
from mmengine.dist import get_dist_info, master_only, sync_random_seed
from mmengine.logging import print_log
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.models import SegDataPreProcessor
from mmseg.registry import DATASETS as MMSEG_DATASETS
from torch.utils.data import Dataset, Sampler

from mmextra.engine.arrays import read_arrays
from mmextra.engine.atomic_checkpoint import write_atomically
from mmextra.registry import DATA_SAMPLERS, DATASETS, MODELS

IGNORED = 255


@DATASETS.register_module()
class PrefixSegDataset(BaseSegDataset):
    """A segmentation data set of the images whose file names begin with certain letters.

    Args:
        prefixes (Sequence[str]): Beginnings of file names.
        **kwargs: Arguments of mmseg's ``BaseSegDataset``.

    Raises:
        ValueError: If no image has such a name.
    """

    def __init__(self, prefixes: Sequence[str], **kwargs) -> None:
        self.prefixes = tuple(prefixes)
        super().__init__(**kwargs)

    def load_data_list(self) -> List[dict]:
        """The entries whose names fit."""
        entries = super().load_data_list()
        kept = [e for e in entries if Path(e['img_path']).name.startswith(self.prefixes)]
        if not kept:
            raise ValueError(
                f'none of {len(entries)} images in {self.data_prefix.get("img_path")} has a name that begins '
                f'with {" or ".join(self.prefixes)}'
            )
        return kept


class Unlabelled:
    """A pipeline in which no annotation is ever seen.

    Files of annotations are not opened. Steps that look at labels find an image without any: everything is
    ignored.

    Args:
        transforms (Sequence): The steps.
    """

    def __init__(self, transforms: Sequence) -> None:
        self.transforms = list(transforms)

    def __call__(self, results: dict) -> Optional[dict]:
        """Run the steps."""
        results = self._blank(dict(results))
        results.pop('seg_map_path', None)
        for step in self.transforms:
            if isinstance(step, AnyLoadAnnotations):
                results['gt_seg_map'] = np.full(results['img'].shape[:2], IGNORED, np.uint8)
                results['seg_fields'] = [*results.get('seg_fields', []), 'gt_seg_map']
                continue
            results = step(results)
            if results is None:
                return None
            results = self._blank(results)
        sample = results.get('data_samples')
        for name in [k for k in sample.keys() if k.startswith('gt_')] if sample is not None else ():
            delattr(sample, name)
        return results

    @staticmethod
    def _blank(results: dict) -> dict:
        for key, value in results.items():
            if key.startswith('gt_') and isinstance(value, np.ndarray):
                results[key] = np.full_like(value, IGNORED)
        return results


def leaves(dataset: Dataset) -> Iterator[Dataset]:
    """The data sets with pipelines, inside whatever wraps them (``ConcatDataset``, ``RepeatDataset``, ...)."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    for one in inner:
        if one is not None:
            yield from leaves(one)
    if hasattr(dataset, 'pipeline') and hasattr(dataset.pipeline, 'transforms'):
        yield dataset


def class_balanced(
    counts: np.ndarray, random: np.random.RandomState, reset_every: int = 3000
) -> Iterator[int]:
    """Draw images without end so that rare classes are seen about as often as common ones.

    A class is drawn with probability proportional to ``1 / log(1.01 + share)``, where share is its part of the
    pixels of all images drawn so far; then its next image is taken.

    Args:
        counts (np.ndarray): Pixels of every class in every image, (images, classes).
        random (np.random.RandomState): Where the draws come from.
        reset_every (int): Draws after which the shares start anew. Defaults to 3000.
    """
    present = np.flatnonzero(counts.any(0))
    queues = {c: random.permutation(np.flatnonzero(counts[:, c])) for c in present}
    taken = dict.fromkeys(present, 0)
    draws = 0
    while True:
        if draws % reset_every == 0:
            seen = np.zeros(counts.shape[1])
        weights = 1 / np.log(1.01 + seen[present] / max(seen.sum(), 1))
        c = random.choice(present, p=weights / weights.sum())
        image = queues[c][taken[c] % len(queues[c])]
        taken[c] += 1
        draws += 1
        seen += counts[image]
        yield int(image)


def shuffled(size: int, random: np.random.RandomState) -> Iterator[int]:
    """All of ``range(size)`` in random order, again and again."""
    while True:
        yield from random.permutation(size).tolist()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of Python, numpy and torch (CPU) that follow from a seed; those outside go on as before."""
    states = python_random.getstate(), np.random.get_state(), torch.get_rng_state()
    python_random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        python_random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@DATASETS.register_module()
class DomainPairDataset(Dataset):
    """Pairs of a labelled source image and an unlabelled target image.

    An item is ``dict(source=..., target=...)``, each what the pipeline of that data set returns. Labels of the
    target, should there be any, are never read: not from files, not by a step of the pipeline, not from the item.

    Both may be any data set of mmseg, of any size, with images of any size. With :class:`DomainPairSampler` each
    is drawn from in its own order. With the host's samplers item ``i`` pairs source ``i`` with target ``i``, the
    smaller one starting anew when it ends.

    Args:
        source, target (dict or Dataset): Data sets with the same classes.
        class_balanced (bool): Whether the sampler draws source images so that rare classes come up often.
            Defaults to False.
        class_counts (str, optional): A file ``*.npy`` that keeps the numbers of pixels of each class, for which all
            source labels have to be read once. Defaults to None, which reads them at each start.

    Raises:
        ValueError: If the classes differ.

    Example:
        >>> train_dataloader = dict(
        ...     sampler=dict(type='mmextra.DomainPairSampler'),
        ...     dataset=dict(type='mmextra.DomainPairDataset', source=..., target=..., class_balanced=True),
        ... )
    """

    def __init__(
        self,
        source: Union[dict, Dataset],
        target: Union[dict, Dataset],
        class_balanced: bool = False,
        class_counts: Optional[str] = None,
    ) -> None:
        self.source, self.target = (
            MMSEG_DATASETS.build(d) if isinstance(d, dict) else d for d in (source, target)
        )
        for name, dataset in (('source', self.source), ('target', self.target)):
            if not hasattr(dataset, 'metainfo'):
                raise TypeError(
                    f'{name} must be a data set of mmseg or a dict, got {type(dataset).__name__}'
                )
        self.class_balanced = class_balanced
        self.class_counts = class_counts
        classes = [d.metainfo.get('classes') for d in (self.source, self.target)]
        if None not in classes and [*classes[0]] != [*classes[1]]:
            raise ValueError(
                f'source and target need the same classes in the same order; got {classes[0]} and {classes[1]}'
            )
        for dataset in leaves(self.target):
            dataset.pipeline = Unlabelled(dataset.pipeline.transforms)

    @property
    def metainfo(self) -> dict:
        """That of the source."""
        return self.source.metainfo

    def full_init(self) -> None:
        """Load the lists of both data sets."""
        for dataset in (self.source, self.target):
            if hasattr(dataset, 'full_init'):
                dataset.full_init()

    def __len__(self) -> int:
        """The larger of the two sizes."""
        return max(len(self.source), len(self.target))

    def __getitem__(self, index: Union[int, Tuple[int, ...]]) -> Dict[str, Any]:
        """A pair.

        Args:
            index (int or tuple[int, ...]): The index of the pair; or those of source and target, and then,
                if wanted, a seed of the augmentation.

        Raises:
            ValueError: If a label of the source is beyond the classes, or if classes should be balanced and the
                sampler cannot do so.
        """
        if not isinstance(index, tuple):
            if self.class_balanced:
                raise ValueError(
                    "class_balanced=True needs sampler=dict(type='mmextra.DomainPairSampler')"
                )
            index = (index % len(self.source), index % len(self.target))
        source, target, *seed = index
        with seeded(*seed) if seed else nullcontext():
            pair = dict(source=self.source[source], target=self.target[target])
        self._check_labels(pair['source'])
        return pair

    def _check_labels(self, item: dict) -> None:
        sample = item.get('data_samples')
        if sample is None or 'gt_sem_seg' not in sample:
            raise ValueError(
                'items of the source need labels: has its pipeline LoadAnnotations and PackSegInputs?'
            )
        classes = self.metainfo.get('classes')
        if classes is None:
            return
        labels = sample.gt_sem_seg.data
        beyond = labels[(labels != IGNORED) & ((labels >= len(classes)) | (labels < 0))]
        if len(beyond):
            raise ValueError(
                f'{sample.metainfo.get("seg_map_path", "a source image")} has the label {int(beyond[0])}, but '
                f'there are {len(classes)} classes and {IGNORED} for what is ignored: convert the labels, or give '
                'the data set the classes that they are of'
            )

    def source_indices(self, seed: int) -> Iterator[int]:
        """An endless order of the source images."""
        random = np.random.RandomState([seed, 0])
        if self.class_balanced:
            return class_balanced(self.count_pixels(), random)
        return shuffled(len(self.source), random)

    def target_indices(self, seed: int) -> Iterator[int]:
        """An endless order of the target images."""
        return shuffled(len(self.target), np.random.RandomState([seed, 1]))

    def count_pixels(self) -> np.ndarray:
        """Pixels of every class in every source image, (images, classes).

        Raises:
            ValueError: If the file ``class_counts`` is about other images or classes.
        """
        shape = (len(self.source), len(self.metainfo['classes']))
        file = self.class_counts and Path(self.class_counts)
        if file and file.is_file():
            (counts,) = read_arrays(file)
            if counts.shape != shape or counts.dtype.kind not in 'iu' or counts.min() < 0:
                raise ValueError(
                    f'{file} counts {counts.shape} images and classes, the source has {shape}: remove it'
                )
            if not counts.any():
                raise ValueError(f'{file} counts no pixel at all: remove it')
            return counts
        print_log(f'counting the pixels of each class in {shape[0]} images', 'current')
        load = LoadAnnotations()
        counts = np.zeros(shape, np.int64)
        for i in range(shape[0]):
            info = self.source.get_data_info(i)
            labels = (info if 'gt_seg_map' in info else load(info))['gt_seg_map']
            counts[i] = np.bincount(labels.ravel(), minlength=256)[: shape[1]]
        if not counts.any():
            raise ValueError('no source image has a labelled pixel: class_balanced cannot be used')
        if file:
            self._save(file, counts)
        return counts

    @staticmethod
    @master_only
    def _save(file: Path, counts: np.ndarray) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.save(content, counts)
        write_atomically(content.getvalue(), file)
        print_log(f'wrote {file}', 'current', logging.INFO)


@DATA_SAMPLERS.register_module()
class DomainPairSampler(Sampler):
    """Draws source and target indices without end, each in its own order, and seeds for their augmentation.

    All of it follows from the seed and the place in the order alone. So a resumed run goes on as an unbroken one,
    whatever the number of workers and however the host passes over what was seen; and under several processes
    each takes its part of the one order.

    Args:
        dataset (DomainPairDataset): The pairs.
        seed (int, optional): The same on all processes. Defaults to None, a common random one.

    Raises:
        ValueError: If it is given another data set.
    """

    def __init__(self, dataset: DomainPairDataset, seed: Optional[int] = None) -> None:
        if not hasattr(dataset, 'source_indices'):
            raise ValueError(
                f'dataset must be a mmextra.DomainPairDataset, got {type(dataset).__name__}'
            )
        self.dataset = dataset
        self.rank, self.world_size = get_dist_info()
        self.seed = sync_random_seed() if seed is None else seed
        self.skipped = 0

    def __iter__(self) -> Iterator[Tuple[int, int, int]]:
        """Index of the source, index of the target, seed."""
        seed = self.seed % 2**32
        order = zip(
            self.dataset.source_indices(seed),
            self.dataset.target_indices(seed),
            ((seed + 1000003 * place) % 2**32 for place in count()),
        )
        return islice(order, self.rank + self.skipped * self.world_size, None, self.world_size)

    def skip(self, num_samples: int) -> None:
        """Begin after so many pairs of this process; loops that know of it pass over nothing else when resuming."""
        self.skipped = num_samples

    def __len__(self) -> int:
        """Number of pairs in the data set; the sampler itself does not end."""
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Nothing: there are no epochs."""


@MODELS.register_module()
class DomainPairDataPreprocessor(SegDataPreProcessor):
    """Applies the host's preprocessing to source and target apart; at test time it is the host's.

    Whole target images that a pipeline kept (``full_img``) are normalised likewise and returned as the inputs
    ``full``.

    Args:
        *args: Those of mmseg's ``SegDataPreProcessor``.
        **kwargs: Likewise.
    """

    def forward(self, data: dict, training: bool = False) -> Dict[str, Any]:
        """Prepare a batch.

        Args:
            data (dict): A batch of :class:`DomainPairDataset`, or of any data set.
            training (bool): Whether it is for training. Defaults to False.

        Returns:
            dict: ``inputs`` and ``data_samples``; for pairs each a dict by domain.

        Raises:
            ValueError: If whole images of different sizes meet in a batch.
        """
        if 'source' not in data:
            return super().forward(data, training)
        inputs, data_samples = {}, {}
        for domain in ('source', 'target'):
            batch = super().forward(data[domain], training)
            inputs[domain], data_samples[domain] = batch['inputs'], batch['data_samples']
        images = [sample.metainfo.get('full_img') for sample in data_samples['target']]
        if images[0] is not None:
            if len({image.shape for image in images}) > 1:
                raise ValueError(
                    'whole target images pass the network as one batch and must be of one size: put a Resize '
                    f'before TrackedRandomSizedCrop; got {", ".join(str(i.shape[:2]) for i in images)}'
                )
            inputs['full'] = self._whole(images)
        return dict(inputs=inputs, data_samples=data_samples)

    def _whole(self, images: List[np.ndarray]) -> torch.Tensor:
        """Images (H, W, 3) as they are loaded to the network's input (B, 3, H, W), without padding."""
        images = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
        padding, self.test_cfg = self.test_cfg, None
        try:
            return super().forward(dict(inputs=images))['inputs']
        finally:
            self.test_cfg = padding
