"""Zero-shot segmentation metrics, as reported for TagCLIP (arXiv 2304.07547)."""

from typing import Dict, Optional, Sequence

import numpy as np
from mmseg.evaluation.metrics import IoUMetric

from mmextra.registry import METRICS


@METRICS.register_module()
class ZeroShotIoUMetric(IoUMetric):
    """mIoU of seen and of unseen classes, and their harmonic mean.

    Adds ``mIoU_seen``, ``mIoU_unseen``, ``hIoU`` and ``pAcc`` (pixel accuracy), in percent, to what
    mmseg's ``IoUMetric`` gives. Classes that neither occur nor are predicted are left out of the means.

    Args:
        novel_class (Sequence[int]): Indices of the unseen classes in the data set.
        **kwargs: Arguments of ``IoUMetric``.

    Raises:
        ValueError: If an index is given twice; or, when the metric learns of the data set, if one is
            not among its classes or if no seen or no unseen class is left.
    """

    def __init__(self, novel_class: Sequence[int], **kwargs) -> None:
        super().__init__(**kwargs)
        if len(set(novel_class)) != len(novel_class):
            raise ValueError(f'novel_class names a class twice: {list(novel_class)}')
        self.novel_class = list(novel_class)

    @property
    def dataset_meta(self) -> Optional[dict]:
        """Metainfo of the data set; the runner sets it before anything runs."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, dataset_meta: dict) -> None:
        classes = dataset_meta['classes']
        wrong = [i for i in self.novel_class if not 0 <= i < len(classes)]
        if wrong:
            raise ValueError(
                f'novel_class of the metric holds {wrong}, but the data set has {len(classes)} classes '
                f'(0 to {len(classes) - 1})'
            )
        if not 0 < len(self.novel_class) < len(classes):
            raise ValueError(
                f'novel_class must leave seen and unseen classes, got {len(self.novel_class)} of '
                f'{len(classes)}; use IoUMetric where there is no split'
            )
        self._dataset_meta = dataset_meta

    def compute_metrics(self, results: list) -> Dict[str, float]:
        """Compute the metrics from the areas of all images."""
        metrics = super().compute_metrics(results)
        if self.format_only:
            return metrics
        intersect, union, _, label = (sum(areas).double().numpy() for areas in zip(*results))
        with np.errstate(invalid='ignore'):
            iou = 100 * intersect / union
        if self.nan_to_num is not None:
            iou = np.nan_to_num(iou, nan=self.nan_to_num)
        unseen = np.zeros(len(iou), bool)
        unseen[self.novel_class] = True
        # A half of which no class occurs has mean 0/0, and so has the harmonic mean.
        halves = (iou[~unseen], iou[unseen])
        means = [np.nanmean(h) if np.isfinite(h).any() else np.nan for h in halves]
        harmonic = 2 * means[0] * means[1] / sum(means) if sum(means) else 0.0
        values = dict(
            mIoU_seen=means[0],
            mIoU_unseen=means[1],
            hIoU=harmonic,
            pAcc=100 * intersect.sum() / label.sum(),
        )
        return {**metrics, **{k: np.round(v, 2) for k, v in values.items()}}
