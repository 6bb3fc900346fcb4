"""Mixing data sets that keep their own label spaces (METR).

Language-aware Multiple Datasets Detection Pretraining for DETRs (arXiv 2304.03580). Registered here:
``AttachLabelSpace``, ``SizePowerSampler`` and ``LabelSpaceCheckHook``.
"""

import logging
from typing import Iterator, Optional, Sized, Tuple

from mmcv.transforms import BaseTransform
from mmdet.datasets.samplers import MultiDataSampler
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner

from mmextra.registry import DATA_SAMPLERS, HOOKS, TRANSFORMS


@TRANSFORMS.register_module()
class AttachLabelSpace(BaseTransform):
    """Say which label space the labels of an image belong to.

    ``'label_space'`` must be among the ``meta_keys`` of ``PackDetInputs``.

    Added keys: ``label_space``.

    Args:
        name (str): A label space of the model.

    Raises:
        ValueError: If the name is empty.
    """

    def __init__(self, name: str) -> None:
        if not name:
            raise ValueError(f'name must be that of a label space, found {name!r}')
        self.name = name

    def transform(self, results: dict) -> dict:
        """Add the key."""
        results['label_space'] = self.name
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(name={self.name!r})'


@DATA_SAMPLERS.register_module()
class SizePowerSampler(MultiDataSampler):
    """Draws from each data set in proportion to a power of its size.

    1 draws all images alike, 0 all data sets alike.

    Args:
        dataset (Sized): A ``ConcatDataset``.
        power (float): Defaults to 0.5.
        seed (int, optional): Defaults to None, a random one that all processes share.
        round_up (bool): Whether all processes get equally many. Defaults to True.
    """

    def __init__(
        self, dataset: Sized, power: float = 0.5, seed: Optional[int] = None, round_up: bool = True
    ) -> None:
        if not hasattr(dataset, 'datasets'):
            raise ValueError(
                f'dataset is a {type(dataset).__name__}, expected a ConcatDataset of several'
            )
        sizes = [len(part) for part in dataset.datasets]
        if not all(sizes):
            raise ValueError(f'every data set must have images, found {sizes}')
        shares = [(size / max(sizes)) ** power for size in sizes]
        super().__init__(dataset, shares, seed, round_up)


def label_spaces_of(dataset) -> Iterator[Tuple[Optional[str], BaseDataset]]:
    """The plain data sets within wrappers, each with the label space that its pipeline attaches."""
    if hasattr(dataset, 'datasets'):
        for part in dataset.datasets:
            yield from label_spaces_of(part)
    elif hasattr(dataset, 'dataset'):
        yield from label_spaces_of(dataset.dataset)
    else:
        steps = dataset.pipeline.transforms
        names = [step.name for step in steps if isinstance(step, AttachLabelSpace)]
        yield (names[-1] if names else None), dataset


@HOOKS.register_module()
class LabelSpaceCheckHook(Hook):
    """Compares the label spaces of a METR with the classes of the data sets, before anything runs.

    In testing with a ``test_label_space`` it only warns: images may be asked about anything, but
    metrics then compare other categories than those of the truth. Where several data sets are
    evaluated, pictures show the names that detections carry, for there is no common list of them.

    Raises:
        ValueError: If a data set has no label space or an unknown one, its classes are not those of
            its label space, or two validation sets have the same one, under which their results
            would be reported.
        TypeError: If the model is no METR.
    """

    def before_train(self, runner: Runner) -> None:
        """Check the training sets."""
        self._check(_model(runner), runner.train_dataloader.dataset)

    def before_val(self, runner: Runner) -> None:
        """Check the validation sets."""
        self._before_evaluation(runner, runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        """Check the test sets."""
        self._before_evaluation(runner, runner.test_dataloader.dataset)

    def _before_evaluation(self, runner: Runner, dataset) -> None:
        model = _model(runner)
        if isinstance(runner.visualizer.dataset_meta, (list, tuple)):
            runner.visualizer.dataset_meta = dict(palette='random')
        if model.test_label_space is None:
            self._check(model, dataset, evaluated=True)
            return
        names = model.label_spaces.names[model.test_label_space]
        for _, part in label_spaces_of(dataset):
            if _classes(part) != names:
                print_log(
                    f'images of {_title(part)} are asked about {", ".join(names[:5])}'
                    f'{", ..." * (len(names) > 5)} (test_label_space), which are not its classes: '
                    'metrics of it mean nothing',
                    'current',
                    level=logging.WARNING,
                )

    def _check(self, model, dataset, evaluated: bool = False) -> None:
        names, seen = model.label_spaces.names, set()
        for space, part in label_spaces_of(dataset):
            if space is None and len(names) == 1:
                space = next(iter(names))
            if space not in names:
                raise ValueError(
                    f'{_title(part)} has the label space {space!r}, expected one of '
                    f'{", ".join(names)}: see mmextra.AttachLabelSpace'
                )
            if _classes(part) != names[space]:
                raise ValueError(
                    f'{_title(part)} has other classes, or in another order, than label space '
                    f'{space!r} of the model: {part.metainfo.get("classes")} and {names[space]}'
                )
            if evaluated and space in seen:
                raise ValueError(
                    f'two data sets are evaluated under the prefix {space!r}: give each a label '
                    'space with a name of its own, the categories may be the same'
                )
            seen.add(space)


def _model(runner: Runner):
    """The METR of a run, out of the wrappers of distributed training and test-time augmentation."""
    model = runner.model
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    if not hasattr(model, 'label_spaces'):
        raise TypeError(
            f'mmextra.LabelSpaceCheckHook goes with mmextra.METR, the model is {type(model).__name__}'
        )
    return model


def _classes(dataset: BaseDataset) -> tuple:
    """The category names of a data set, as far as it has a list of them."""
    classes = dataset.metainfo.get('classes')
    return tuple(classes) if isinstance(classes, (list, tuple)) else ()


def _title(dataset: BaseDataset) -> str:
    """A data set in a message."""
    return f'{type(dataset).__name__} {getattr(dataset, "ann_file", "")}'.strip()
