"""Mean average precision of oriented boxes, as DOTA counts it, and its submission files."""

import re
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from mmdet.evaluation.functional import average_precision
from mmdet.structures.bbox import get_box_tensor
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from torch import Tensor

from mmextra.registry import METRICS
from mmextra.structures.oriented_boxes import boxes_to_quads, oriented_nms, oriented_overlaps

EVAL_MODES = ('11points', 'area')
# The names that the splitter gives to patches: id, size of the window, and where it was.
PATCH_NAME = re.compile(r'(?P<id>.+?)__(?:\d+)__(?P<x>-?\d+)___(?P<y>-?\d+)')
# Copies of one object in overlapping patches.
SAME_OBJECT = 0.9

Arrays = Dict[str, Tensor]


@METRICS.register_module()
class OrientedDOTAMetric(BaseMetric):
    """mAP over rotated IoU.

    Reports ``AP50`` and the like for each threshold, and ``mAP``, the mean over thresholds; classes
    without objects do not count. The log has a table of the classes.

    With ``merge_patches`` the detections of the patches of an image are put together where they
    were cut from, and copies are removed by NMS of each class; so are the objects, where the
    patches have some. mAP is then that of whole images.

    Args:
        iou_thrs (float | Sequence[float]): Thresholds of the IoU. Defaults to 0.5.
        eval_mode (str): ``'11points'``, the interpolation of VOC07 and DOTA, or ``'area'``.
            Defaults to ``'11points'``.
        merge_patches (bool): See above. Defaults to False.
        merge_iou_thr (float): IoU threshold of the NMS. Defaults to 0.1.
        outfile_prefix (str, optional): Folder for the files of a submission: ``Task1_CLASS.txt``
            with lines ``id score x1 y1 x2 y2 x3 y3 x4 y4``, and all of them in ``Task1.zip``.
            Nothing is written by default.
        format_only (bool): Whether to write the files and evaluate nothing. Defaults to False.
        collect_device (str): Defaults to ``'cpu'``.
        prefix (str, optional): Defaults to ``'dota'``.
    """

    default_prefix = 'dota'

    def __init__(
        self,
        iou_thrs: Union[float, Sequence[float]] = 0.5,
        eval_mode: str = '11points',
        merge_patches: bool = False,
        merge_iou_thr: float = 0.1,
        outfile_prefix: Optional[str] = None,
        format_only: bool = False,
        collect_device: str = 'cpu',
        prefix: Optional[str] = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.iou_thrs = [iou_thrs] if isinstance(iou_thrs, (int, float)) else list(iou_thrs)
        if not self.iou_thrs or not all(0 < thr <= 1 for thr in self.iou_thrs):
            raise ValueError(f'iou_thrs must be thresholds in (0, 1], got {iou_thrs}')
        if eval_mode not in EVAL_MODES:
            raise ValueError(f'eval_mode must be one of {EVAL_MODES}, got {eval_mode!r}')
        if format_only and outfile_prefix is None:
            raise ValueError('format_only=True needs outfile_prefix, the folder to write to')
        self.eval_mode = eval_mode
        self.merge_patches, self.merge_iou_thr = merge_patches, merge_iou_thr
        self.outfile_prefix, self.format_only = outfile_prefix, format_only

    def process(self, data_batch: Sequence[dict], data_samples: Sequence[dict]) -> None:
        """Keep predictions and objects of a batch, on the CPU."""
        for sample in data_samples:
            pred = sample['pred_instances']
            kept = dict(img_id=str(sample['img_id']), pred=arrays(pred, scores=pred['scores']))
            if 'bboxes' in sample.get('gt_instances', {}):
                kept['gt'] = objects_of(sample)
            self.results.append(kept)

    def compute_metrics(self, results: List[dict]) -> Dict[str, float]:
        """Evaluate the whole data set, and write the files that are asked for."""
        logger = MMLogger.get_current_instance()
        classes = self.dataset_meta['classes']
        if self.merge_patches:
            results = merge_patches(results, self.merge_iou_thr)
        if self.outfile_prefix is not None:
            archive = write_submission(results, classes, Path(self.outfile_prefix))
            logger.info(f'the submission is in {archive}')
        if self.format_only:
            return {}
        annotated = [r for r in results if 'gt' in r]
        if not annotated:
            raise ValueError(
                'OrientedDOTAMetric has no objects to compare with: the data set needs an ann_file and '
                'the pipeline LoadAnnotations, or set format_only=True'
            )
        found = [
            oriented_map(annotated, len(classes), thr, self.eval_mode) for thr in self.iou_thrs
        ]
        logger.info(self._table(classes, found))
        metrics = {
            f'AP{round(100 * thr):02d}': result['mAP'] for thr, result in zip(self.iou_thrs, found)
        }
        metrics['mAP'] = float(np.mean(list(metrics.values())))
        return metrics

    def _table(self, classes: Sequence[str], found: List[dict]) -> str:
        width = max(map(len, ('class', *classes)))
        names = [f'AP{round(100 * thr):02d}' for thr in self.iou_thrs]
        lines = [f'{"class":{width}} {"objects":>8}' + ''.join(f'{n:>8}' for n in names)]
        for i, name in enumerate(classes):
            values = ''.join(f'{r["ap"][i]:8.4f}' for r in found)
            lines.append(f'{name:{width}} {found[0]["num_gts"][i]:8d}{values}')
        return '\n'.join(['', *lines])


def arrays(instances: dict, **extra: Tensor) -> Arrays:
    """Boxes and labels of instances, and what else is given, on the CPU."""
    boxes = get_box_tensor(instances['bboxes'])
    if boxes.shape[-1] != 5:
        raise ValueError(
            f'OrientedDOTAMetric compares boxes of five numbers, got {boxes.shape[-1]}: it needs an '
            "oriented detector, and objects from LoadAnnotations with box_type='obox'"
        )
    found = dict(bboxes=boxes, labels=instances['labels'], **extra)
    return {k: v.detach().cpu() for k, v in found.items()}


def objects_of(sample: dict) -> Arrays:
    """The objects of an image, ``ignored`` ones among them."""
    parts = []
    for key, ignored in (('gt_instances', False), ('ignored_instances', True)):
        instances = sample.get(key, {})
        if 'bboxes' in instances:
            labels = instances['labels']
            parts.append(
                arrays(instances, ignored=torch.full_like(labels, ignored, dtype=torch.bool))
            )
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}


# Average precision


def oriented_map(
    results: Sequence[dict], num_classes: int, iou_thr: float = 0.5, mode: str = '11points'
) -> dict:
    """Average precision of each class, and its mean.

    A detection is compared with the object of its class that it overlaps most. If they overlap
    enough it is right, unless the object was found before by a surer one; if that object is
    ignored, it does not count at all.

    Args:
        results (Sequence[dict]): For each image ``pred``, with ``bboxes`` (N, 5), ``scores`` and
            ``labels``, and ``gt``, with ``bboxes`` (M, 5), ``labels`` and ``ignored``.
        num_classes (int): Number of classes.
        iou_thr (float): Smallest IoU of a match. Defaults to 0.5.
        mode (str): ``'11points'`` or ``'area'``. Defaults to ``'11points'``.

    Returns:
        dict: ``mAP`` over the classes with objects, 0 without any; ``ap`` and ``num_gts``,
        (num_classes, ).
    """
    ap, num_gts = np.zeros(num_classes), np.zeros(num_classes, int)
    for label in range(num_classes):
        scores, outcomes = [], []
        for result in results:
            pred, gt = (of_class(result[k], label) for k in ('pred', 'gt'))
            num_gts[label] += int((~gt['ignored']).sum())
            order = pred['scores'].argsort(descending=True, stable=True)
            scores.append(pred['scores'][order].numpy())
            outcomes.append(outcomes_of(pred['bboxes'][order], gt, iou_thr))
        order = np.argsort(-np.concatenate(scores), kind='stable')
        right, wrong = np.concatenate(outcomes, 1)[:, order].cumsum(1)
        recalls = right / max(num_gts[label], 1)
        precisions = right / np.maximum(right + wrong, 1)
        ap[label] = average_precision(recalls, precisions, mode)
    counted = num_gts > 0
    mean = float(ap[counted].mean()) if counted.any() else 0.0
    return dict(mAP=mean, ap=ap, num_gts=num_gts)


def outcomes_of(boxes: Tensor, gt: Arrays, iou_thr: float) -> np.ndarray:
    """Which of the detections (N, 5) of an image, surest first, are right and which are wrong.

    Returns:
        np.ndarray: Boolean, (2, N); false in both where a detection does not count.
    """
    if len(gt['bboxes']) == 0 or len(boxes) == 0:
        return np.stack([np.zeros(len(boxes), bool), np.ones(len(boxes), bool)])
    overlaps, nearest = oriented_overlaps(boxes, gt['bboxes']).max(1)
    matched, nearest = (overlaps >= iou_thr).numpy(), nearest.numpy()
    counts = matched & ~gt['ignored'].numpy()[nearest]
    right = np.zeros(len(boxes), bool)
    found = counts.nonzero()[0]
    right[found[np.unique(nearest[found], return_index=True)[1]]] = True
    return np.stack([right, ~matched | (counts & ~right)])


def of_class(instances: Arrays, label: int) -> Arrays:
    """The instances with this label."""
    chosen = instances['labels'] == label
    return {k: v[chosen] for k, v in instances.items()}


# Whole images from patches


def merge_patches(results: Sequence[dict], iou_thr: float = 0.1) -> List[dict]:
    """Results of whole images from those of their patches.

    Args:
        results (Sequence[dict]): For each patch ``img_id``, ``pred`` and perhaps ``gt``, as
            :func:`oriented_map` takes them.
        iou_thr (float): Of two detections of a class that overlap more, the surer one is kept.
            Defaults to 0.1.

    Returns:
        list[dict]: The same for each image.
    """
    images: Dict[str, List[dict]] = defaultdict(list)
    for result in results:
        name, offset = patch_origin(result['img_id'])
        moved = {k: move(result[k], offset) for k in ('pred', 'gt') if k in result}
        images[name].append(moved)
    merged = []
    for name, patches in images.items():
        whole = dict(img_id=name)
        pred = concatenate([p['pred'] for p in patches])
        whole['pred'] = suppress(pred, pred['scores'], iou_thr)
        if all('gt' in p for p in patches):
            gt = concatenate([p['gt'] for p in patches])
            # Copies that count before those that are ignored.
            whole['gt'] = suppress(gt, (~gt['ignored']).float(), SAME_OBJECT)
        merged.append(whole)
    return merged


def patch_origin(img_id: str) -> Tuple[str, Tuple[int, int]]:
    """Name of the image that a patch was cut from, and where: its left and upper border.

    Raises:
        ValueError: If the name is not one that the splitter gives.
    """
    match = PATCH_NAME.fullmatch(img_id)
    if match is None:
        raise ValueError(
            f'merge_patches=True needs patches named ID__SIZE__X___Y, as `tools/prepare_data.py '
            f'dota-split` names them; got {img_id!r}'
        )
    return match['id'], (int(match['x']), int(match['y']))


def move(instances: Arrays, offset: Tuple[int, int]) -> Arrays:
    """The instances, shifted by an offset in pixels."""
    shift = torch.tensor([*offset, 0, 0, 0], dtype=instances['bboxes'].dtype)
    return dict(instances, bboxes=instances['bboxes'] + shift)


def concatenate(parts: Sequence[Arrays]) -> Arrays:
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}


def suppress(instances: Arrays, scores: Tensor, iou_thr: float) -> Arrays:
    """NMS of rotated boxes within each class, surest first."""
    kept = []
    for label in instances['labels'].unique():
        rows = (instances['labels'] == label).nonzero()[:, 0]
        kept.append(rows[oriented_nms(instances['bboxes'][rows], scores[rows], iou_thr)])
    rows = torch.cat(kept) if kept else torch.zeros(0, dtype=torch.long)
    return {k: v[rows] for k, v in instances.items()}


def write_submission(results: Sequence[dict], classes: Sequence[str], folder: Path) -> Path:
    """Write ``Task1_CLASS.txt`` for each class, and ``Task1.zip`` with all of them.

    Scores and coordinates have two decimals. Returns the path of the archive.
    """
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / 'Task1.zip'
    with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED) as packed:
        for label, name in enumerate(classes):
            lines = []
            for result in results:
                pred = of_class(result['pred'], label)
                quads = boxes_to_quads(pred['bboxes'])
                for score, quad in zip(pred['scores'].tolist(), quads.tolist()):
                    numbers = ' '.join(f'{v:.2f}' for v in (score, *quad))
                    lines.append(f'{result["img_id"]} {numbers}\n')
            file = folder / f'Task1_{name}.txt'
            file.write_text(''.join(lines))
            packed.write(file, file.name)
    return archive
