"""The distillation losses of LD and the hook that adds them to a stock dense detector."""

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple, Type

import torch
import torch.nn.functional as F
from mmcv.ops import batched_nms
from mmdet.models.dense_heads import ATSSHead, FCOSHead, GFLHead, RetinaHead
from mmdet.models.losses.kd_loss import knowledge_distillation_kl_div_loss
from mmdet.models.task_modules.prior_generators import AnchorGenerator, anchor_inside_flags
from mmdet.models.utils import unpack_gt_instances
from torch import Tensor, nn

from mmextra.distill.base import DistillHook, LossDict, Recorder, Teacher, loss_weight
from mmextra.distill.ld.heads import ATSSDistHead, FCOSDistHead, RetinaDistHead
from mmextra.distill.ld.regions import (
    IMITATION_METHODS,
    centers,
    imitation_region,
    points_inside,
    vlr_weights,
)
from mmextra.engine.checkpoint import StateDict, register_layout
from mmextra.ops.precision import at_least_float32
from mmextra.ops.rotated import axis_aligned
from mmextra.registry import HOOKS

# The published weights for each student head: `norm` divides a localization term, T is the
# temperature.
RECIPES: Dict[Type[nn.Module], Dict[str, dict]] = {
    GFLHead: dict(
        ld=dict(weight=0.25, T=10, norm=4),
        vlr=dict(weight=0.25, T=10, norm=16),
        kd=dict(weight=10, T=2),
    ),
    ATSSDistHead: dict(
        ld=dict(weight=0.25, T=10, norm=4),
        vlr=dict(weight=0.15 * 0.25, T=10, norm=4),
        kd=dict(weight=10, T=2),
    ),
    FCOSDistHead: dict(
        ld=dict(weight=0.25, T=10, norm=4),
        vlr=dict(weight=0.25 * 0.25, T=10, norm=4),
        kd=dict(weight=10, T=2),
    ),
    RetinaDistHead: dict(
        ld=dict(weight=5, T=10, norm=4),
        vlr=dict(weight=0.03 * 5, T=10, norm=4),
        kd=dict(weight=10, T=8),
    ),
}
# The journal version's, for heads with five distributions a box, by their box loss; one region.
ORIENTED_RECIPES = dict(
    gwd=dict(ld=dict(weight=10, T=5), vlr=dict(gamma=0.25), kd=dict(weight=20, T=5)),
    kld=dict(ld=dict(weight=15, T=5), vlr=dict(gamma=0.25), kd=dict(weight=15, T=5)),
)
# What to use instead of a stock head that predicts four numbers a box.
DISTRIBUTION_HEADS = {
    ATSSHead: 'mmextra.ATSSDistHead',
    FCOSHead: 'mmextra.FCOSDistHead',
    RetinaHead: 'mmextra.RetinaDistHead',
}


def box_numbers(head: nn.Module) -> int:
    """How many distributions a box has: four edges, or the five numbers of an oriented box."""
    return getattr(head, 'box_numbers', 4)


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of rows of logits (N, K): mean over the K bins, times T squared; (N, )."""
    return knowledge_distillation_kl_div_loss(student, teacher, T=temperature, reduction='none')


def edge_kl(student: Tensor, teacher: Tensor, edges: int, temperature: float) -> Tensor:
    """Sum over a box's edges, or other numbers, of :func:`kl`, (N, ), of logits (N, edges *
    bins)."""
    bins = student.shape[1] // edges
    return (
        kl(student.reshape(-1, bins), teacher.reshape(-1, bins), temperature)
        .reshape(-1, edges)
        .sum(1)
    )


@dataclass
class Level:
    """One pyramid level of a batch, flattened over images, cells and anchors to N rows.

    Attributes:
        student_cls, teacher_cls (Tensor): Class logits, (N, C).
        student_box, teacher_box (Tensor): Distribution logits, (N, edges * bins).
        positive (Tensor): Indices of the positives among the N.
        label_weights (Tensor): (N, ).
        region (Tensor): Weight of each anchor in the second region, VLR or the unified one.
        anchors (Tensor): Anchors (N, 4) or points (N, 2).
        stride (int): Stride in pixels.
    """

    student_cls: Tensor
    teacher_cls: Tensor
    student_box: Tensor
    teacher_box: Tensor
    positive: Tensor
    label_weights: Tensor
    region: Tensor
    anchors: Tensor
    stride: int

    @property
    def confidence(self) -> Tensor:
        """The student's own highest class probability, (N, ), without gradient."""
        return self.student_cls.detach().sigmoid().amax(1)


def per_anchor(maps: Tensor, channels: int) -> Tensor:
    """(B, A * channels, H, W) as rows (B * H * W * A, channels), of half precision in float32."""
    return at_least_float32(maps.permute(0, 2, 3, 1).reshape(-1, channels))


def dense_levels(
    head: nn.Module,
    student_outs: Sequence[List[Tensor]],
    teacher_outs: Sequence[List[Tensor]],
    targets: tuple,
    gts: List[Tensor],
    metas: List[dict],
    region: dict,
) -> List[Level]:
    """Line up what student and teacher said with the student's own targets, level by level.

    Args:
        head (nn.Module): The student's head.
        student_outs, teacher_outs (Sequence): What the heads returned: class maps and distribution
            maps of each level, (B, A*C, H, W) and (B, A*edges*bins, H, W), first.
        targets (tuple): What the student's ``get_targets`` returned in this iteration.
        gts (list[Tensor]): Ground-truth boxes of each image.
        metas (list[dict]): Meta information of each image.
        region (dict): Arguments of :func:`vlr_weights`.

    Returns:
        list[Level]: One entry a level.
    """
    student_cls, student_box = student_outs[:2]
    classes, box_channels = head.cls_out_channels, box_numbers(head) * (head.reg_max + 1)
    sizes, device = [m.shape[-2:] for m in student_cls], student_cls[0].device
    strides = [s[0] for s in head.prior_generator.strides]
    batch = len(metas)
    if isinstance(head, FCOSHead):
        labels = targets[0]
        weights = [torch.ones_like(level, dtype=torch.float) for level in labels]
        anchors = head.prior_generator.grid_priors(sizes, dtype=student_box[0].dtype, device=device)
        inside = torch.stack([points_inside(torch.cat(anchors), boxes) for boxes in gts])
        inside = [m.flatten() for m in inside.split([len(a) for a in anchors], 1)]
        regions = [m & (label == head.num_classes) for m, label in zip(inside, labels)]
        anchors = [a.repeat(batch, 1) for a in anchors]
    else:
        # GFL and ATSS return their anchors first.
        labels, weights = targets[1:3] if isinstance(head, (GFLHead, ATSSHead)) else targets[:2]
        all_anchors, valid = head.get_anchors(sizes, metas, device=device)
        counts = [len(level) for level in all_anchors[0]]
        border = head.train_cfg['allowed_border']
        used = [  # the anchors that are assigned: not on the padding and, if asked for, within the image
            anchor_inside_flags(torch.cat(a), torch.cat(v), meta['img_shape'][:2], border)
            for a, v, meta in zip(all_anchors, valid, metas)
        ]
        regions = [
            _region_of_used(torch.cat(a), u, boxes, counts, **region)
            for a, u, boxes in zip(all_anchors, used, gts)
        ]
        regions = torch.stack(regions).split(counts, 1)
        anchors = [torch.cat(level) for level in zip(*all_anchors)]
    levels = []
    for i, stride in enumerate(strides):
        label = labels[i].flatten()
        positive = ((label >= 0) & (label < head.num_classes)).nonzero()[:, 0]
        levels.append(
            Level(
                per_anchor(student_cls[i], classes),
                per_anchor(teacher_outs[0][i], classes),
                per_anchor(student_box[i], box_channels),
                per_anchor(teacher_outs[1][i], box_channels),
                positive,
                weights[i].flatten().float(),
                regions[i].float().flatten(),
                anchors[i],
                stride,
            )
        )
        if isinstance(head, FCOSHead):
            levels[-1].region *= levels[-1].confidence
        if isinstance(head, RetinaHead):  # only here are positives taken out of the region
            levels[-1].region[positive] = 0
    return levels


def _region_of_used(
    anchors: Tensor, used: Tensor, gts: Tensor, counts: List[int], **kwargs
) -> Tensor:
    """:func:`vlr_weights` over the anchors that are used, 0 elsewhere."""
    weights = anchors.new_zeros(len(anchors))
    inside = [int(level.sum()) for level in used.split(counts)]
    weights[used.bool()] = vlr_weights(anchors[used.bool()], inside, gts, **kwargs)
    return weights


def cell_anchors(head: nn.Module) -> List[list]:
    """Anchors of one cell of each level, relative to it; of points, where they are in a cell."""
    generator = head.prior_generator
    if isinstance(generator, AnchorGenerator):
        return [level.tolist() for level in generator.base_anchors]
    return [[generator.offset] for _ in generator.strides]


def imitation_loss(student: Tensor, teacher: Tensor, foreground: Tensor, method: str) -> Tensor:
    """Mean squared error over selected cells.

    Args:
        student, teacher (Tensor): Features of one level as rows, (cells, D).
        foreground (Tensor): The cells to imitate, boolean (cells, ) or indices.
        method (str): ``'decouple'`` adds twice the error over all other cells.
    """
    loss = F.mse_loss(student[foreground], teacher[foreground])
    if method == 'decouple':
        loss = loss + 2 * F.mse_loss(student[~foreground], teacher[~foreground])
    return loss


def general_instances(
    level: Level, reg_max: int, top: int = 10, iou_threshold: float = 0.3
) -> Tensor:
    """Indices of the cells where student and teacher differ most, after NMS (GI imitation).

    An anchor's score is the largest difference of class probabilities; its box is that of whichever
    side is more sure.
    """
    student, teacher = level.student_cls.sigmoid(), level.teacher_cls.sigmoid()
    difference = teacher - student
    score, which = difference.abs().max(1)
    teacher_wins = difference.gather(1, which[:, None])[:, 0] >= 0
    points = (
        centers(level.anchors) if level.anchors.shape[1] == 4 else level.anchors
    ) / level.stride
    logits = torch.where(teacher_wins[:, None], level.teacher_box, level.student_box)
    bins = torch.arange(reg_max + 1, dtype=logits.dtype, device=logits.device)
    distances = (logits.reshape(len(logits), 4, -1).softmax(-1) * bins).sum(-1)
    boxes = torch.cat([points - distances[:, :2], points + distances[:, 2:]], 1)
    # One NMS over the whole level of the batch, whatever class or image a box is of.
    _, keep = batched_nms(
        boxes, score, torch.zeros_like(which), dict(type='nms', iou_threshold=iou_threshold)
    )
    return keep[:top]


@HOOKS.register_module()
class LocalizationDistillationHook(DistillHook):
    """Localization distillation (LD) for dense detectors whose head predicts box edges as
    distributions.

    The student is a stock detector with a head of the GFL family, or with one of
    ``mmextra.ATSSDistHead``, ``mmextra.FCOSDistHead``, ``mmextra.RetinaDistHead``; the teacher has
    the same kind of head, with the same classes, anchors and ``reg_max``. Weights default to the
    published ones for the student's head; a term given as a dict changes only what it names, None
    switches the term off.

    Heads with ``box_numbers = 5``, such as ``mmextra.OrientedGFLHead``, are distilled as the journal
    version does oriented detectors: in the unified region, which ignores the angles.

    The terms are sums over the batch, as published for at most 3 images per device;
    ``normalize='num_imgs'`` makes them independent of the batch size.

    Args:
        teacher (dict): See :class:`mmextra.distill.base.DistillHook`.
        ld (dict, optional): Main region, the student's positives: ``weight``, temperature ``T``,
            divisor ``norm``. Adds ``loss_ld``. Defaults to the recipe of the head.
        vlr (dict, optional): Valuable localization region: the same, and ``gamma``, ``metric`` of
            :func:`vlr_weights`. Adds ``loss_ld_vlr``. Defaults to the recipe of the head.
        kd (dict, optional): Class logits on positives: ``weight``, ``T``. Adds ``loss_kd``.
            Defaults to the recipe.
        kd_vlr (dict, optional): Class logits on the valuable localization region. Adds
            ``loss_kd_vlr``; not in the unified region. Defaults to None.
        imitation (dict, optional): Features of the neck: ``method`` (``'finegrained'``,
            ``'fitnet'``, ``'decouple'``, ``'gibox'``), ``weight``. Adds ``loss_im``. Defaults to
            None.
        region (str, optional): ``'main+vlr'``, or ``'unified'``, the single region of the journal
            version: all anchors with IoU of at least ``gamma`` times the threshold, weighted by
            their IoU and averaged, for both ``ld`` and ``kd``; of ``vlr`` it takes ``gamma`` alone.
            Defaults to ``'main+vlr'``, to ``'unified'`` for oriented heads, which know no other.
        per_edge (bool): Whether each edge is a distribution of its own. False reproduces the
            published RetinaNet results, which put one softmax over all edges. Defaults to True.
        normalize (str): ``'sum'`` or ``'num_imgs'``. Defaults to ``'sum'``.
        **kwargs: ``begin``, ``end``, ``warmup``, ``by_epoch`` of
            :class:`~mmextra.distill.base.DistillHook`.

    Raises:
        ValueError: If an option is unknown; at the start of training, if the heads or the region do not fit.

    Example:
        >>> custom_hooks = [
        ...     dict(
        ...         type='mmextra.LocalizationDistillationHook',
        ...         teacher=dict(config='mmdet::gfl/...', checkpoint='gfl_r101.pth'),
        ...     )
        ... ]
    """

    student_records = ('bbox_head', 'bbox_head.get_targets()')

    def __init__(
        self,
        teacher: dict,
        ld: Optional[dict] = dict(),
        vlr: Optional[dict] = dict(),
        kd: Optional[dict] = dict(),
        kd_vlr: Optional[dict] = None,
        imitation: Optional[dict] = None,
        region: Optional[str] = None,
        per_edge: bool = True,
        normalize: str = 'sum',
        **kwargs,
    ) -> None:
        super().__init__(teacher, **kwargs)
        if region not in (None, 'main+vlr', 'unified'):
            raise ValueError(f"region must be 'main+vlr' or 'unified', got {region!r}")
        if normalize not in ('sum', 'num_imgs'):
            raise ValueError(f"normalize must be 'sum' or 'num_imgs', got {normalize!r}")
        if imitation is not None and imitation.get('method') not in IMITATION_METHODS:
            raise ValueError(
                f'imitation needs a method of {IMITATION_METHODS}, got {imitation.get("method")!r}'
            )
        known = dict(
            ld={'weight', 'T', 'norm'},
            vlr={'weight', 'T', 'norm', 'gamma', 'metric'},
            kd={'weight', 'T'},
            kd_vlr={'weight', 'T'},
            imitation={'method', 'weight'},
        )
        self.terms = dict(ld=ld, vlr=vlr, kd=kd, kd_vlr=kd_vlr, imitation=imitation)
        for name, term in self.terms.items():
            if term is not None and set(term) - known[name]:
                raise ValueError(
                    f'{name} takes {sorted(known[name])}, got {sorted(set(term) - known[name])}'
                )
        self.region, self.per_edge, self.normalize = region, per_edge, normalize
        if imitation is not None:
            self.student_records = (*self.student_records, 'neck')

    @property
    def enabled(self) -> bool:
        """Whether any term has a weight."""
        return any(loss_weight(term) for term in self.terms.values())

    def recipe(self, head: nn.Module) -> Dict[str, Optional[dict]]:
        """The terms for this head: the published settings, with what the user changed."""
        if box_numbers(head) == 5:
            published = ORIENTED_RECIPES[getattr(head.loss_bbox, 'loss_type', 'gwd')]
        else:
            published = next(recipe for kind, recipe in RECIPES.items() if isinstance(head, kind))
        base = dict(kd_vlr=published['kd'], imitation=dict(weight=2.0), **published)
        return {k: None if term is None else {**base[k], **term} for k, term in self.terms.items()}

    def check(self, student: nn.Module, teacher: nn.Module) -> None:
        """Both heads must predict the same distributions over the same anchors."""
        heads = []
        for side, model in (('student', student), ('teacher', teacher)):
            head = getattr(model, 'bbox_head', None)
            if not isinstance(head, tuple(RECIPES)):
                stock = next(
                    (new for kind, new in DISTRIBUTION_HEADS.items() if isinstance(head, kind)),
                    None,
                )
                instead = (
                    f"set bbox_head.type='{stock}'"
                    if stock
                    else (
                        "use a head of the GFL family (bbox_head.type='GFLHead') or 'mmextra.ATSSDistHead', "
                        "'mmextra.FCOSDistHead', 'mmextra.RetinaDistHead'"
                    )
                )
                raise ValueError(
                    f'localization distillation needs a head that predicts box edges as distributions; the '
                    f'{side} has {type(head).__name__}: {instead}'
                )
            heads.append(head)
        own, other = heads

        def facts(head):
            return dict(
                num_classes=head.num_classes,
                box_numbers=box_numbers(head),
                reg_max=head.reg_max,
                strides=list(head.prior_generator.strides),
                anchors_per_cell=list(head.prior_generator.num_base_priors),
            )

        for name, value in facts(own).items():
            if value != facts(other)[name]:
                raise ValueError(
                    f'teacher and student must agree in {name}: the student has {value}, the teacher '
                    f"{facts(other)[name]}. Train a teacher with the student's {name}, or change the student."
                )
        for level, anchors in enumerate(zip(cell_anchors(own), cell_anchors(other))):
            if anchors[0] != anchors[1]:
                raise ValueError(
                    f'teacher and student must agree in anchors: on level {level} a cell of the student has '
                    f"{anchors[0]}, one of the teacher {anchors[1]}. Give the student the teacher's "
                    '`anchor_generator`, and a head of the same kind.'
                )
        if box_numbers(own) == 5:
            self._check_oriented(own, other)
        if isinstance(own, FCOSHead):
            self._check_points()
        if self.region == 'unified' or box_numbers(own) == 5:
            self._check_unified()

    def _check_unified(self) -> None:
        """What a single region has no use for."""
        kd_vlr, vlr = self.terms['kd_vlr'], self.terms['vlr'] or {}
        if kd_vlr is not None and kd_vlr.get('weight', 1):
            raise ValueError(
                "kd_vlr is for region='main+vlr': in the unified region all class distillation is kd's"
            )
        unused = sorted(set(vlr) - {'gamma'})
        if unused and vlr.get('weight', 1):
            raise ValueError(
                f"vlr takes gamma alone in the unified region, whose weight, T and norm are ld's; got {unused}"
            )

    def _check_points(self) -> None:
        """What heads without anchors cannot do."""
        if self.region == 'unified':
            raise ValueError(
                "region='unified' needs anchors, and FCOS has points: use region='main+vlr'"
            )
        if (self.terms['imitation'] or {}).get('method') == 'finegrained':
            raise ValueError(
                "imitation method 'finegrained' needs anchors, and FCOS has points: use 'fitnet', "
                "'decouple' or 'gibox'"
            )

    def _check_oriented(self, own: nn.Module, other: nn.Module) -> None:
        """What oriented heads cannot do, or must agree in besides."""
        if self.region == 'main+vlr':
            raise ValueError(
                "oriented heads are distilled in one region: use region='unified', or leave it out"
            )
        if (self.terms['imitation'] or {}).get('method') == 'gibox':
            raise ValueError(
                "imitation method 'gibox' needs horizontal boxes: use 'finegrained', 'fitnet' or 'decouple'"
            )
        if not torch.equal(own.integral.values.cpu(), other.integral.values.cpu()):
            raise ValueError(
                'teacher and student must agree in the values of their bins: set the same delta_range and '
                'angle_range'
            )

    def losses(
        self, student: Recorder, teacher: Teacher, inputs: Tensor, data_samples: list
    ) -> LossDict:
        """Losses of Sections 3.2 and 3.3 and, if asked for, of feature imitation; a list over levels each."""
        head = student.model.bbox_head
        terms = self.recipe(head)
        instances, _, metas = unpack_gt_instances(data_samples)
        oriented = box_numbers(head) == 5
        gts = [axis_aligned(i.bboxes) if oriented else i.bboxes for i in instances]
        unified = self.region == 'unified' or oriented
        region = {k: v for k, v in (terms['vlr'] or {}).items() if k in ('gamma', 'metric')}
        if unified:
            region = dict(region, metric='iou', bounded=False)
        levels = dense_levels(
            head,
            student['bbox_head'],
            teacher.head,
            student['bbox_head.get_targets()'],
            gts,
            metas,
            region,
        )
        result: Dict[str, List[Tensor]] = {}
        for level in levels:
            found = (
                self.unified_terms(level, terms, box_numbers(head))
                if unified
                else self.region_terms(level, terms, head)
            )
            for name, value in found.items():
                result.setdefault(name, []).append(value)
        if loss_weight(terms['imitation']):
            result['loss_im'] = self.imitation_terms(
                student['neck'], teacher.features, levels, gts, head, terms['imitation']
            )
        if self.normalize == 'num_imgs':
            result = {k: [v / len(metas) for v in values] for k, values in result.items()}
        return result

    def _box_kl(self, level: Level, rows: Tensor, edges: int, temperature: float) -> Tensor:
        return edge_kl(
            level.student_box[rows],
            level.teacher_box[rows],
            edges if self.per_edge else 1,
            temperature,
        )

    def region_terms(self, level: Level, terms: dict, head: nn.Module) -> Dict[str, Tensor]:
        """Main region and VLR of one level."""
        nothing = level.student_box.sum() * 0
        main, vlr = level.positive, level.region.nonzero()[:, 0]
        # The published ATSS and GFL students weight class distillation by the label weights, the others do not.
        weighted = isinstance(head, (GFLHead, ATSSHead))
        result = {}
        for name, key, rows, weights in (
            ('loss_ld', 'ld', main, level.confidence),
            ('loss_ld_vlr', 'vlr', vlr, level.region),
        ):
            if loss_weight(term := terms[key]):
                value = (weights[rows] * self._box_kl(level, rows, 4, term['T'])).sum() / term[
                    'norm'
                ]
                result[name] = term['weight'] * value if len(rows) else nothing
        for name, key, rows in (('loss_kd', 'kd', main), ('loss_kd_vlr', 'kd_vlr', vlr)):
            if loss_weight(term := terms[key]):
                value = kl(level.student_cls[rows], level.teacher_cls[rows], term['T'])
                value = value * level.label_weights[rows] if weighted else value
                result[name] = term['weight'] * value.mean() if len(rows) else nothing
        return result

    def unified_terms(self, level: Level, terms: dict, edges: int) -> Dict[str, Tensor]:
        """The single region of the journal version, averaged over its members."""
        rows = level.region.nonzero()[:, 0]
        weights = level.region[rows] / max(1, len(rows))
        result = {}
        if loss_weight(term := terms['ld']):
            value = self._box_kl(level, rows, edges, term['T'])
            result['loss_ld'] = term['weight'] * (weights * value).sum()
        if loss_weight(term := terms['kd']):
            value = kl(level.student_cls[rows], level.teacher_cls[rows], term['T'])
            result['loss_kd'] = term['weight'] * (weights * value).sum()
        return result

    def imitation_terms(
        self,
        student: Tuple[Tensor],
        teacher: Tuple[Tensor],
        levels: List[Level],
        gts: List[Tensor],
        head: nn.Module,
        term: dict,
    ) -> List[Tensor]:
        """Feature imitation on the outputs of the necks, 0 on a level without positives."""
        losses, start = [], 0
        anchors_per_image = torch.cat(
            [lv.anchors.reshape(len(gts), -1, lv.anchors.shape[1])[0] for lv in levels]
        )
        if anchors_per_image.shape[1] == 2:
            anchors_per_image = anchors_per_image.repeat(1, 2)
        masks = None
        if term['method'] != 'gibox':
            masks = torch.stack(
                [imitation_region(term['method'], anchors_per_image, boxes) for boxes in gts]
            )
        for own, other, level in zip(student, teacher, levels):
            if own.shape != other.shape:
                raise ValueError(
                    f'imitation compares the necks cell by cell: student {tuple(own.shape)}, teacher '
                    f'{tuple(other.shape)}. Use the same width, or a method with adapters such as ReviewKD.'
                )
            rows, target = per_anchor(own, own.shape[1]), per_anchor(other, other.shape[1])
            per_cell = len(level.anchors) // len(rows)
            if masks is None:
                chosen = general_instances(level, head.reg_max) // per_cell
            else:
                count = len(level.anchors) // len(gts)
                chosen = masks[:, start : start + count].reshape(-1, per_cell).any(1)
                start += count
            empty = len(level.positive) == 0 or rows[chosen].numel() == 0
            losses.append(
                own.sum() * 0
                if empty
                else term['weight'] * imitation_loss(rows, target, chosen, term['method'])
            )
        return losses


@register_layout('ld')
def ld_layout(state: StateDict) -> StateDict:
    """The authors' detectors are mmdet 2.x: the same keys as mmdet 3.x, beside a teacher that some files carry."""
    return {k: v for k, v in state.items() if not k.startswith(('teacher.', 'teacher_model.'))}
