"""What is written about predictions: soft labels for self-training, and IoU by class."""

import json
from pathlib import Path
from typing import Dict, Optional, Sequence

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmseg.evaluation import IoUMetric

from mmextra.registry import METRICS
from mmextra.seg.decouplenet.pseudo_labels import check_keep, keep_threshold


@METRICS.register_module()
class SoftLabelDumper(BaseMetric):
    """Stores logits at the network's resolution, and a confidence threshold for each class.

    For the host's test script, with ``model.test_cfg.mode='logits'`` and the training images of the target as
    test images. Writes ``FOLDER/IMAGE.npy`` (num_classes, h, w), float32, for each image and
    ``FOLDER/thresholds.json``.

    Args:
        folder (str): Where to write.
        keep (float): Part of each class's pixels, over all images, that passes its threshold. Defaults to 0.8.
        **kwargs: Further arguments of mmengine's ``BaseMetric``.
    """

    def __init__(self, folder: str, keep: float = 0.8, **kwargs) -> None:
        super().__init__(**kwargs)
        self.folder = Path(folder)
        self.keep = check_keep(keep)
        self.written: Dict[str, str] = {}

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Store a batch.

        Raises:
            ValueError: If two images have the same name, or if the logits were resized to image size.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for sample in data_samples:
            logits = sample['seg_logits']['data'].float()
            path = sample['img_path']
            name = Path(path).stem
            if self.written.setdefault(name, path) != path:
                raise ValueError(f'{path} and {self.written[name]} would be stored in one file')
            if 'pred_sem_seg' in sample:
                raise ValueError(
                    "the logits are at image size: set test_cfg=dict(mode='logits') in the model"
                )
            np.save(self.folder / f'{name}.npy', logits.cpu().numpy())
            confidence, classes = logits.softmax(0).max(0)
            self.results.append(
                (
                    confidence.flatten().cpu().numpy(),
                    classes.flatten().cpu().numpy().astype(np.uint8),
                    len(logits),
                )
            )

    def compute_metrics(self, results: list) -> Dict[str, float]:
        """Write the thresholds; a class that is never predicted has 0."""
        confidences, classes = (np.concatenate([r[i] for r in results]) for i in (0, 1))
        thresholds = [0.0] * results[0][2]
        for c in np.unique(classes):
            values = torch.from_numpy(confidences[classes == c])
            thresholds[c] = keep_threshold(values, self.keep).item()
        content = dict(keep=self.keep, images=len(results), thresholds=thresholds)
        (self.folder / 'thresholds.json').write_text(json.dumps(content))
        return dict(images=len(results), confidence=float(confidences.mean()))


@METRICS.register_module()
class ClassIoUMetric(IoUMetric):
    """The host's IoU metric, with the IoU of every class and means over some of them as metrics of their own.

    Args:
        subsets (dict[str, Sequence[str]], optional): Name of a metric -> classes whose mean IoU it is. Defaults to
            None.
        **kwargs: Arguments of mmseg's ``IoUMetric``.

    Raises:
        ValueError: If a subset names a class that the data set does not have.
    """

    def __init__(self, subsets: Optional[Dict[str, Sequence[str]]] = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.subsets = subsets or {}

    def compute_metrics(self, results: list) -> Dict[str, float]:
        """Those of the host; ``IoU/CLASS`` in percent for each class that occurs; the means. ``format_only``: none."""
        metrics = super().compute_metrics(results)
        if self.format_only:
            return metrics
        classes = self.dataset_meta['classes']
        intersection, union = (sum(r[i] for r in results).double() for i in (0, 1))
        by_class = dict(zip(classes, (100 * intersection / union).tolist()))
        for name, members in self.subsets.items():
            unknown = [c for c in members if c not in by_class]
            if unknown:
                raise ValueError(
                    f'{name} names {", ".join(unknown)}, the classes are {", ".join(classes)}'
                )
            metrics[name] = round(float(np.nanmean([by_class[c] for c in members])), 2)
        occurring = {c: v for c, v in by_class.items() if v == v}  # not NaN
        return dict(metrics, **{f'IoU/{c}': round(v, 2) for c, v in occurring.items()})
