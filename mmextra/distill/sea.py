"""SEA: semantic-aware alignment of feature pyramids.

SEA: Bridging the Gap Between One- and Two-stage Detector Distillation via SEmantic-aware Alignment
(arXiv 2203.00862). Registered here: the hook ``SEADistillHook`` for any stock detector with a
pyramid, and the loss ``SemanticAlignLoss`` on features and label maps.

The paper published no code. Category anchors and the topological distance are the paper's; how
pixels get their categories, the averages and the weights are this project's reading.
"""

import math
from typing import Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmdet.models.detectors import TwoStageDetector
from mmengine.dist import all_reduce
from mmengine.model import kaiming_init
from torch import Tensor, nn

from mmextra.distill.base import DistillHook, LossDict, Recorder, Teacher
from mmextra.distill.pyramid import (
    as_maps,
    blank_features,
    check_pyramids,
    pyramid_strides,
)
from mmextra.ops.precision import at_least_float32
from mmextra.registry import HOOKS, MODELS

OUTSIDE, BACKGROUND = -2, -1
REGIONS = ('box', 'mask')
LEVEL_RULES = ('all', 'size')
EPS = 1e-6


# Which category a pixel of a feature map has.


def pixel_labels(
    gt_bboxes: Sequence[Tensor],
    gt_labels: Sequence[Tensor],
    sizes: Sequence[Tuple[int, int]],
    strides: Sequence[int],
    img_shapes: Sequence[Tuple[int, int]],
    ignored_bboxes: Optional[Sequence[Tensor]] = None,
    masks: Optional[Sequence[Tensor]] = None,
    level_rule: str = 'all',
) -> List[Tensor]:
    """The category of every pixel of every level.

    Pixel (i, j) of a level of stride s stands for the point ((j + 0.5) s, (i + 0.5) s). It has the
    category of the object that the point is strictly inside of; of several, that of the one with
    the smallest box. An object without any such point on a level claims the pixel that holds its
    centre, unless another object has that.

    Args:
        gt_bboxes (Sequence[Tensor]): Boxes of each image, (G, 4) as (x1, y1, x2, y2) in pixels of
            the network's input.
        gt_labels (Sequence[Tensor]): Categories of each image, (G, ).
        sizes (Sequence[tuple]): Height and width of each level in cells.
        strides (Sequence[int]): Stride of each level in pixels.
        img_shapes (Sequence[tuple]): Height and width of each image without its padding.
        ignored_bboxes (Sequence[Tensor], optional): Boxes of each image, (I, 4), whose pixels
            belong to nothing. Defaults to None.
        masks (Sequence[Tensor], optional): Masks of the objects of each image, (G, H, W) in pixels
            of the network's input, to be inside of instead of the boxes. Defaults to None.
        level_rule (str): ``'all'``: every level labels every object. ``'size'``: only the level
            ``floor(4 + log2(sqrt(w h) / 224))``, where level k has stride ``2**k``, or the nearest
            that exists; on the others the object is background. Defaults to ``'all'``.

    Returns:
        list[Tensor]: For each level (B, H, W): -2 outside the image or in an ignored box, -1
            background, and the category elsewhere.

    Raises:
        ValueError: If ``level_rule`` is unknown.
    """
    if level_rule not in LEVEL_RULES:
        raise ValueError(f'level_rule must be one of {LEVEL_RULES}, got {level_rule!r}')
    levels = []
    for index, (size, stride) in enumerate(zip(sizes, strides)):
        images = []
        for i, (boxes, labels) in enumerate(zip(gt_bboxes, gt_labels)):
            mask = None if masks is None else masks[i]
            if level_rule == 'size':
                chosen = _levels_by_size(boxes, strides) == index
                boxes, labels = boxes[chosen], labels[chosen]
                mask = None if mask is None else mask[chosen.to(mask.device)]
            ignored = None if ignored_bboxes is None else ignored_bboxes[i]
            images.append(_label_map(boxes, labels, size, stride, img_shapes[i], ignored, mask))
        levels.append(torch.stack(images))
    return levels


def _levels_by_size(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """Index of the level of each box, (G, )."""
    side = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1).sqrt()
    own = torch.tensor([math.log2(s) for s in strides], device=boxes.device)
    level = torch.floor(4 + torch.log2(side / 224)).clamp(own.min(), own.max())
    return (level[:, None] - own).abs().argmin(1)


def _inside_boxes(boxes: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Which points of the grid are strictly inside which box, (G, H, W)."""
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    return ((y > y1) & (y < y2))[:, :, None] & ((x > x1) & (x < x2))[:, None]


def _inside_masks(masks: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Which points of the grid are on which mask, (G, H, W)."""
    height, width = masks.shape[-2:]
    rows, columns = y.long().to(masks.device), x.long().to(masks.device)
    picked = masks[:, rows.clamp(max=height - 1)][:, :, columns.clamp(max=width - 1)]
    covered = (y < height)[:, None] & (x < width)[None]
    return picked.to(y.device).bool() & covered


def _label_map(
    boxes: Tensor,
    labels: Tensor,
    size: Tuple[int, int],
    stride: int,
    img_shape: Tuple[int, int],
    ignored: Optional[Tensor],
    mask: Optional[Tensor],
) -> Tensor:
    """:func:`pixel_labels` of one image on one level, (H, W)."""
    y, x = ((torch.arange(n, device=boxes.device) + 0.5) * stride for n in size)
    inside = _inside_boxes(boxes, y, x) if mask is None else _inside_masks(mask, y, x)
    # An object is known by its place in the order of areas; `nobody` comes last.
    place = (boxes[:, 2:] - boxes[:, :2]).prod(1).argsort(stable=True).argsort().int()
    nobody = len(boxes)
    owner = place[:, None, None].where(inside, nobody)
    owner = torch.cat([owner, owner.new_full((1, *size), nobody)]).amin(0)
    unseen = ~inside.flatten(1).any(1)
    column, row = ((boxes[:, :2] + boxes[:, 2:]) / 2 / stride).long().unbind(1)
    cell = row.clamp(0, size[0] - 1) * size[1] + column.clamp(0, size[1] - 1)
    claims = owner.new_full((size[0] * size[1],), nobody)
    claims = claims.scatter_reduce(0, cell[unseen], place[unseen], 'amin').view(size)
    owner = claims.where(owner == nobody, owner)
    by_place = labels.new_full((nobody + 1,), BACKGROUND)
    by_place[place.long()] = labels
    result = by_place[owner.long()]
    outside = (y >= img_shape[0])[:, None] | (x >= img_shape[1])[None]
    if ignored is not None and len(ignored):
        outside = outside | _inside_boxes(ignored, y, x).any(0)
    return result.masked_fill(outside, OUTSIDE)


# What is aligned.


def category_anchors(features: Tensor, members: Tensor, sync: bool = False) -> Tensor:
    """Mean feature of each category, (K, D), of features (B, D, N) and memberships (B, K, N).

    With ``sync``, the mean is over all processes; its gradient stays that of this process.
    """
    sums = torch.matmul(members, features.transpose(1, 2)).sum(0)
    counts = members.sum((0, 2))[:, None]
    if sync:
        everywhere = torch.cat([sums.detach(), counts], 1)
        all_reduce(everywhere)
        sums, counts = sums + (everywhere[:, :-1] - sums.detach()), everywhere[:, -1:]
    return sums / counts


def topological_distance(features: Tensor, anchors: Tensor) -> Tensor:
    """``1 - cos`` of every pixel to every category anchor, (B, K, N), of features (B, D, N) and
    anchors (K, D)."""
    norms = features.norm(dim=1, keepdim=True).clamp(min=EPS)
    return 1 - torch.matmul(F.normalize(anchors, dim=1, eps=EPS), features) / norms


@MODELS.register_module()
class SemanticAlignLoss(nn.Module):
    """Align category anchors, and the distance of every pixel to them.

    On each level, the anchor of a category is the mean feature of its pixels in the batch, for
    student and teacher apart. Both terms are means over categories or groups (the categories
    present, and the background), so no category counts more for being larger, and then means over
    the levels that have any category.

    Args:
        anchor_weight (float, optional): Weight of the squared difference of the anchors. Defaults
            to 2.0.
        topo_weight (float, optional): Weight of the squared difference of the topological
            distances. Defaults to 5.0.
        pixel_weight (float, optional): Weight of the squared difference of the pixels themselves,
            averaged over the same groups. Defaults to None, off.
        detach_anchor (bool): Whether the student's anchors are constants in its topological
            distance. Defaults to False.
        sync_anchor (bool): Whether anchors are means over all processes; gradients stay local.
            Defaults to False.

    A term with weight None or 0 is left out.
    """

    def __init__(
        self,
        anchor_weight: Optional[float] = 2.0,
        topo_weight: Optional[float] = 5.0,
        pixel_weight: Optional[float] = None,
        detach_anchor: bool = False,
        sync_anchor: bool = False,
    ) -> None:
        super().__init__()
        weights = dict(anchor=anchor_weight, topo=topo_weight, pixel=pixel_weight)
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.detach_anchor, self.sync_anchor = detach_anchor, sync_anchor

    def forward(
        self,
        student_feats: Sequence[Tensor],
        teacher_feats: Sequence[Tensor],
        label_maps: Sequence[Tensor],
    ) -> Dict[str, Tensor]:
        """Compare the pyramids of a batch, in float32.

        Args:
            student_feats, teacher_feats (Sequence[Tensor]): (B, D, H, W) for each level.
            label_maps (Sequence[Tensor]): (B, H, W) for each level, as :func:`pixel_labels` gives.

        Returns:
            dict: ``loss_sea_anchor``, ``loss_sea_topo``, ``loss_sea_pixel``: those that are
                switched on. 0, with a gradient of 0, if there is no object.

        Raises:
            ValueError: If levels or shapes differ.
        """
        check_pyramids(student_feats, teacher_feats)
        sizes = [tuple(f.shape[:1] + f.shape[2:]) for f in student_feats]
        if [tuple(labels.shape) for labels in label_maps] != sizes:
            raise ValueError(
                f'label maps must be (B, H, W) like the features, {sizes}; '
                f'got {[tuple(labels.shape) for labels in label_maps]}'
            )
        levels, empty = [], 0.0
        for student, teacher, labels in zip(student_feats, teacher_feats, label_maps):
            labels = labels.flatten(1)
            categories = self.categories(labels)
            if len(categories):
                own, other = (
                    at_least_float32(student).flatten(2),
                    at_least_float32(teacher).flatten(2),
                )
                with torch.autocast(labels.device.type, enabled=False):
                    levels.append(self.level_terms(own, other, labels, categories))
            else:  # every parameter still gets a gradient, as DDP wants it
                empty = empty + at_least_float32(student).sum() * 0
        return {
            f'loss_sea_{name}': weight * sum(t[name] for t in levels) / max(1, len(levels)) + empty
            for name, weight in self.weights.items()
        }

    def categories(self, labels: Tensor) -> Tensor:
        """The categories present on a level, (K, ), ascending; with ``sync_anchor``, anywhere."""
        if not self.sync_anchor:
            return labels[labels >= 0].unique()
        number = labels.amax().clamp(min=BACKGROUND) + 1
        all_reduce(number, 'max')
        present = torch.bincount(labels[labels >= 0], minlength=int(number))
        all_reduce(present)
        return present.nonzero()[:, 0]

    def level_terms(
        self, student: Tensor, teacher: Tensor, labels: Tensor, categories: Tensor
    ) -> Dict[str, Tensor]:
        """Every term on one level, of features (B, D, N), labels (B, N) and categories (K, )."""
        members = (labels[:, None] == categories[:, None]).to(student.dtype)  # (B, K, N)
        own = category_anchors(student, members, self.sync_anchor)
        other = category_anchors(teacher, members, self.sync_anchor)
        share = group_shares(members, labels == BACKGROUND)
        terms = {}
        if 'anchor' in self.weights:
            terms['anchor'] = (own - other).square().mean()
        if 'topo' in self.weights:
            own = own.detach() if self.detach_anchor else own
            distances = topological_distance(student, own), topological_distance(teacher, other)
            terms['topo'] = (share * (distances[0] - distances[1]).square().mean(1)).sum()
        if 'pixel' in self.weights:
            terms['pixel'] = (share * (student - teacher).square().mean(1)).sum()
        return terms


def group_shares(members: Tensor, background: Tensor) -> Tensor:
    """The part of each pixel, (B, N), in a mean over groups and then over the pixels of a group.

    Args:
        members (Tensor): Membership in each category, (B, K, N) of 0 and 1.
        background (Tensor): Which pixels are background, (B, N).
    """
    groups = torch.cat([members, background[:, None].to(members.dtype)], 1)
    counts = groups.sum((0, 2))
    return torch.matmul(1 / counts.clamp(min=1), groups) / (counts > 0).sum().clamp(min=1)


@HOOKS.register_module()
class SEADistillHook(DistillHook):
    """Add the losses of SEA to a stock detector.

    Nothing but feature maps and annotations is needed, so one- and two-stage detectors and
    instance segmentation are distilled alike.

    Args:
        teacher (dict): ``config`` and ``checkpoint``; see :class:`~mmextra.distill.base.Teacher`.
        anchor_weight, topo_weight, pixel_weight, detach_anchor, sync_anchor: See
            :class:`SemanticAlignLoss`.
        levels (Sequence[int], optional): Which of the feature maps are aligned. Defaults to None:
            the first four of a two-stage detector, all of any other.
        region (str): What a pixel must be inside of to belong to an object, ``'box'`` or
            ``'mask'``. Defaults to ``'box'``.
        level_rule (str): ``'all'`` or ``'size'``; see :func:`pixel_labels`. Defaults to ``'all'``.
        student_layer, teacher_layer (str): Names of the submodules whose outputs are aligned.
            Default to ``'neck'``.
        adapter (bool, optional): Whether trainable 1x1 convolutions, one a level, lie between
            student and teacher. Defaults to None: where their widths differ.
        **window: ``begin``, ``end``, ``warmup``, ``by_epoch`` of
            :class:`~mmextra.distill.base.DistillHook`.

    Raises:
        ValueError: At the start of a run, if the feature maps cannot be aligned. The message names
            what differs and how to mend it.
    """

    def __init__(
        self,
        teacher: dict,
        anchor_weight: Optional[float] = 2.0,
        topo_weight: Optional[float] = 5.0,
        pixel_weight: Optional[float] = None,
        levels: Optional[Sequence[int]] = None,
        region: str = 'box',
        level_rule: str = 'all',
        detach_anchor: bool = False,
        sync_anchor: bool = False,
        student_layer: str = 'neck',
        teacher_layer: str = 'neck',
        adapter: Optional[bool] = None,
        **window,
    ) -> None:
        super().__init__(teacher, **window)
        if region not in REGIONS:
            raise ValueError(f'region must be one of {REGIONS}, got {region!r}')
        if level_rule not in LEVEL_RULES:
            raise ValueError(f'level_rule must be one of {LEVEL_RULES}, got {level_rule!r}')
        self.align = SemanticAlignLoss(
            anchor_weight, topo_weight, pixel_weight, detach_anchor, sync_anchor
        )
        self.levels, self.region, self.level_rule, self.adapter = (
            levels,
            region,
            level_rule,
            adapter,
        )
        self.student_layer, self.teacher_layer = student_layer, teacher_layer
        self.student_records, self.teacher_records = (student_layer,), (teacher_layer,)

    @property
    def enabled(self) -> bool:
        """Whether any term has a weight."""
        return bool(self.align.weights)

    def check(self, student: nn.Module, teacher: nn.Module) -> None:
        """The levels must exist on both sides, with the same strides and, without adapters, the
        same widths."""
        self._pyramids(student, teacher)

    def _pyramids(
        self, student: nn.Module, teacher: nn.Module
    ) -> Tuple[List[Tensor], List[Tensor]]:
        """The aligned feature maps of a blank image on both sides."""
        own = blank_features(student, self.student_layer)
        other = blank_features(teacher, self.teacher_layer, 'teacher')
        if self.levels is None:
            some = isinstance(student, TwoStageDetector)
            self.levels = tuple(range(min(4, len(own)) if some else len(own)))
        own, other = self._chosen(own, 'student'), self._chosen(other, 'teacher')
        check_pyramids(own, other, same_width=self.adapter is False)
        return own, other

    def _chosen(self, output, side: str) -> List[Tensor]:
        """The aligned levels of the output of a layer."""
        maps = as_maps(output)
        if max(self.levels) >= len(maps):
            raise ValueError(
                f'levels={tuple(self.levels)}, but the {side} has {len(maps)} feature maps: name '
                'levels that both have, or set `num_outs` of the two necks equal'
            )
        return [maps[i] for i in self.levels]

    def build_adapters(self, student: nn.Module, teacher: nn.Module) -> Optional[nn.Module]:
        """One 1x1 convolution a level from the student's width to the teacher's."""
        own, other = self._pyramids(student, teacher)
        widths = [(s.shape[1], t.shape[1]) for s, t in zip(own, other)]
        if not (any(s != t for s, t in widths) if self.adapter is None else self.adapter):
            return None
        adapters = nn.ModuleList(nn.Conv2d(s, t, 1) for s, t in widths)
        for convolution in adapters:
            kaiming_init(convolution)
        return adapters

    def losses(
        self, student: Recorder, teacher: Teacher, inputs: Tensor, data_samples: list
    ) -> LossDict:
        """``loss_sea_anchor``, ``loss_sea_topo`` and, if asked for, ``loss_sea_pixel``."""
        return self.align(*self.aligned(student, teacher, inputs, data_samples))

    def aligned(
        self, student: Recorder, teacher: Teacher, inputs: Tensor, data_samples: list
    ) -> Tuple[List[Tensor], List[Tensor], List[Tensor]]:
        """What is compared: the aligned levels of student and teacher, and the category of every pixel."""
        output = student[self.student_layer]
        own = [at_least_float32(m) for m in self._chosen(output, 'student')]
        # Strides of all levels: those of coarse ones are known from finer ones.
        strides = pyramid_strides(inputs.shape[-2:], as_maps(output))
        labels = self.label_maps(own, [strides[i] for i in self.levels], data_samples)
        if self.adapters is not None:
            own = [adapt(m) for adapt, m in zip(self.adapters, own)]
        teacher.features  # noqa: B018  runs what the layer is part of
        return own, self._chosen(teacher.records[self.teacher_layer], 'teacher'), labels

    @torch.no_grad()
    def label_maps(
        self, maps: List[Tensor], strides: List[int], data_samples: list
    ) -> List[Tensor]:
        """The category of every pixel of the aligned levels."""
        objects = [s.gt_instances for s in data_samples]
        ignored = [
            s.ignored_instances.bboxes if 'ignored_instances' in s else None for s in data_samples
        ]
        masks = None
        if self.region == 'mask':
            if any('masks' not in o for o in objects):
                raise ValueError(
                    "region='mask' needs masks: set LoadAnnotations(with_mask=True), or region='box'"
                )
            masks = [torch.from_numpy(_bitmaps(o.masks)) for o in objects]
        return pixel_labels(
            [o.bboxes for o in objects],
            [o.labels for o in objects],
            [tuple(m.shape[-2:]) for m in maps],
            strides,
            [s.metainfo['img_shape'][:2] for s in data_samples],
            ignored,
            masks,
            self.level_rule,
        )


def _bitmaps(masks):
    """mmdet's masks, bitmaps or polygons, as an array (G, H, W)."""
    return masks.to_bitmap().masks if hasattr(masks, 'to_bitmap') else masks.masks
