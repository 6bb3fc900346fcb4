"""Evaluating several data sets in one loop, each by its own metrics in its own label space (METR).

Language-aware Multiple Datasets Detection Pretraining for DETRs (arXiv 2304.03580). Registered here:
``LabelSpaceEvaluator`` and ``CategoryExtractionMetric``.
"""

from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np
from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.evaluator.metric import _to_cpu
from mmengine.structures import BaseDataElement

from mmextra.registry import EVALUATOR, METRICS


@EVALUATOR.register_module()
class LabelSpaceEvaluator(Evaluator):
    """Hands each image to the metrics of its data set, whatever order images come in.

    The validation set is a ``ConcatDataset`` without ``ignore_keys``, so that each metric learns the
    classes of its own part. Results are named ``LABEL_SPACE/METRIC_PREFIX/NAME``.

    Args:
        metrics (Sequence[dict | Sequence[dict]]): A metric or its config, or several, for each data
            set, in the order of the data sets.
        label_spaces (Sequence[str]): The label space of each, as ``AttachLabelSpace`` names it.

    Raises:
        ValueError: If there are no metrics, not as many as label spaces, or two of these are the
            same.
    """

    def __init__(
        self,
        metrics: Sequence[Union[dict, BaseMetric, Sequence[Union[dict, BaseMetric]]]],
        label_spaces: Sequence[str],
    ) -> None:
        if not metrics or len(metrics) != len(label_spaces):
            raise ValueError(
                f'metrics must be a list of one entry for each of the label spaces, label_spaces={label_spaces}, '
                f'found {metrics!r}'
            )
        repeated = sorted({s for s in label_spaces if list(label_spaces).count(s) > 1})
        if repeated:
            raise ValueError(
                f'label_spaces names {", ".join(repeated)} more than once: results of two data sets '
                'would get one prefix. Give each a label space with a name of its own, the '
                'categories may be the same'
            )
        own = [
            (space, metric)
            for space, several in zip(label_spaces, metrics)
            for metric in (several if isinstance(several, (list, tuple)) else [several])
        ]
        super().__init__([metric for _, metric in own])
        self.spaces = list(label_spaces)
        self.owners = [space for space, _ in own]
        # For each metric: image -> what the metric made of it. An image that a sampler repeats to
        # fill up the last batch counts once.
        self._results: List[Dict[Any, list]] = [{} for _ in own]

    @property
    def dataset_meta(self) -> Union[dict, List[dict], None]:
        """Metainfo of the data sets, in their order."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, dataset_meta: Union[dict, List[dict]]) -> None:
        several = isinstance(dataset_meta, (list, tuple))
        metas = dataset_meta if several else [dataset_meta] * len(self.spaces)
        if len(metas) != len(self.spaces):
            raise ValueError(
                f'the validation set has {len(metas)} data sets, and metrics are given for '
                f'{len(self.spaces)} label spaces ({", ".join(self.spaces)}): each data set needs a '
                'label space of its own name, also where the categories are the same'
            )
        if not several and len(dataset_meta.get('cumulative_sizes', ())) not in (0, len(metas)):
            raise ValueError(
                f'metrics are given for {len(metas)} label spaces, the validation set has '
                f'{len(dataset_meta["cumulative_sizes"])} data sets'
            )
        self._dataset_meta = dataset_meta
        by_space = dict(zip(self.spaces, metas))
        for owner, metric in zip(self.owners, self.metrics):
            metric.dataset_meta = by_space[owner]
        for metric in self.metrics[len(self.owners) :]:
            metric.dataset_meta = metas[0]

    def process(
        self, data_samples: Sequence[BaseDataElement], data_batch: Optional[dict] = None
    ) -> None:
        """Take in predictions.

        Args:
            data_samples (Sequence[DetDataSample]): Predictions, with ``label_space`` in their
                metainfo.
            data_batch (dict, optional): The batch as the loader gave it. Defaults to None.

        Raises:
            ValueError: If an image has no label space that metrics are given for.
        """
        samples = [s.to_dict() if isinstance(s, BaseDataElement) else s for s in data_samples]
        for i, sample in enumerate(samples):
            space = sample.get('label_space')
            if space not in self.spaces:
                raise ValueError(
                    f'{sample.get("img_path", "an image")} has the label space {space!r}, and '
                    f"metrics are given for {', '.join(self.spaces)}: is 'label_space' among the "
                    'meta_keys of PackDetInputs?'
                )
            one = data_batch and {k: v[i : i + 1] for k, v in data_batch.items()}
            for owner, metric, results in zip(self.owners, self.metrics, self._results):
                if owner == space:
                    metric.process(one, [sample])
                    results[sample['img_id']] = list(metric.results)
                    metric.results.clear()
        for metric in self.metrics[len(self.owners) :]:  # what test scripts add, to dump results
            metric.process(data_batch, samples)

    def evaluate(self, size: int) -> dict:
        """Collect the results of all processes and evaluate each metric.

        Args:
            size (int): Number of validation images.

        Raises:
            ValueError: If a label space had no image, or two metrics of it give the same name.
        """
        values: dict = {}
        for owner, metric, results in zip(self.owners, self.metrics, self._results):
            gathered: Dict[Any, list] = {}
            for part in all_gather_object(_to_cpu(results)):
                gathered.update(part)
            results.clear()
            if not gathered:
                raise ValueError(f'no validation image has the label space {owner!r}')
            if is_main_process():
                prefix = f'{owner}/{metric.prefix}' if metric.prefix else owner
                found = metric.compute_metrics(sum(gathered.values(), []))
                found = {f'{prefix}/{name}': value for name, value in found.items()}
                repeated = sorted(values.keys() & found)
                if repeated:
                    raise ValueError(
                        f'two metrics of {owner!r} give {repeated[0]}: set their `prefix`'
                    )
                values.update(found)
        values = [values]
        broadcast_object_list(values)
        for metric in self.metrics[len(self.owners) :]:
            values[0].update(metric.evaluate(size))
        return values[0]


@METRICS.register_module()
class CategoryExtractionMetric(BaseMetric):
    """How well the category extraction module knows what an image holds.

    ``mAP`` is the mean over the categories, that some image holds, of the average precision of
    ranking images by the category's score. ``recall@n`` is the part of the present (image, category)
    pairs among the n likeliest categories of their image: objects of the others are lost.

    Args:
        num_categories (int): n, that of the model. Defaults to 20.
        options: Arguments of the base class.
    """

    default_prefix = 'cem'

    def __init__(self, num_categories: int = 20, **options) -> None:
        super().__init__(**options)
        self.num_categories = num_categories

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep scores and truth, (K,) each; boxes that are ignored do not count.

        Raises:
            ValueError: If the image was asked about fewer categories than its labels show.
        """
        for sample in data_samples:
            scores = sample['pred_categories']['score'].cpu().numpy()
            labels = sample['gt_instances']['labels'].cpu().numpy()
            if len(labels) and labels.max() >= len(scores):
                raise ValueError(
                    f'an image with label {labels.max()} was asked about {len(scores)} categories: '
                    'this metric needs images that are asked about their own label space'
                )
            present = np.zeros(len(scores), bool)
            present[labels] = True
            self.results.append((scores, present))

    def compute_metrics(self, results: list) -> Dict[str, float]:
        """Mean average precision and recall, in [0, 1]."""
        scores, present = (np.stack(part) for part in zip(*results))
        held = present.any(0)
        if not held.any():
            return {'mAP': float('nan'), f'recall@{self.num_categories}': float('nan')}
        precisions = [_average_precision(s, p) for s, p in zip(scores.T[held], present.T[held])]
        top = np.argsort(-scores, axis=1, kind='stable')[:, : self.num_categories]
        found = np.take_along_axis(present, top, 1).sum()
        return {
            'mAP': float(np.mean(precisions)),
            f'recall@{self.num_categories}': float(found / present.sum()),
        }


def _average_precision(scores: np.ndarray, present: np.ndarray) -> float:
    """Mean of the precision at each image that holds the category."""
    ranked = present[np.argsort(-scores, kind='stable')]
    return float((ranked.cumsum() / np.arange(1, len(ranked) + 1))[ranked].mean())
