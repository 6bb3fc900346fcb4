"""Dsig: instance graphs that a small detector shares with its teacher.

Deep Structured Instance Graph for Distilling Object Detectors (arXiv 2109.12862). Registered here:
the hook ``InstanceGraphDistillHook`` for stock one- and two-stage detectors, and the loss
``InstanceGraphLoss`` on pooled features.
"""

from inspect import signature
from typing import Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import ATSSHead, FCOSHead, GFLHead, RetinaHead
from mmdet.models.dense_heads.anchor_head import AnchorHead
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.structures.bbox import bbox2roi
from mmengine.config import ConfigDict
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmextra.distill.base import DistillHook, LossDict, Recorder, Teacher, loss_weight
from mmextra.distill.pyramid import (
    BLANK_SIZE,
    blank_features,
    check_pyramids,
    evaluating,
    pyramid_strides,
)
from mmextra.ops.precision import at_least_float32
from mmextra.registry import HOOKS, MODELS

# What a one-stage student says of an image while it is trained; its boxes are the nodes.
DETECTIONS = ConfigDict(
    nms_pre=1000,
    min_bbox_size=0,
    score_thr=0.0,
    nms=dict(type='nms', iou_threshold=0.5),
    max_per_img=100,
)
# Where the labels stand in what `get_targets` of a dense head returns; their weights follow.
LABELS_AT = {AnchorHead.get_targets: 0, ATSSHead.get_targets: 1, GFLHead.get_targets: 1}
# Heads that say the same while training and while testing. Others are asked once more in eval mode.
SAME_IN_BOTH_MODES = [h.forward_single for h in (AnchorHead, RetinaHead, ATSSHead, GFLHead)]


def background_entropy(logits: Tensor) -> Tensor:
    """Cross entropy of each RoI to the background, (N, ), of logits (N, C + 1), background last."""
    return -at_least_float32(logits).log_softmax(-1)[:, -1]


def edge_matrix(nodes: Tensor) -> Tensor:
    """Cosine similarity of every pair of nodes, (V, V), of features (V, ...); autocast does not matter."""
    nodes = at_least_float32(nodes).flatten(1)
    with torch.autocast(nodes.device.type, enabled=False):
        products = nodes @ nodes.T
    # Norms off the diagonal: features are long, and this way they are read once.
    scale = products.diagonal().clamp(min=1e-24).rsqrt()
    return products * scale[:, None] * scale


def mean_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL divergence of softmaxes over the last dimension, times T squared, mean over all N * C
    elements of the logits (N, C); 0 for N = 0."""
    own = (at_least_float32(student) / temperature).log_softmax(-1)
    other = (at_least_float32(teacher) / temperature).log_softmax(-1)
    divergence = F.kl_div(own, other, reduction='sum', log_target=True) / max(1, student.numel())
    return temperature**2 * divergence


def class_box_l1(student: Tensor, teacher: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """L1 distance of box deltas at the labelled class, summed over the foreground, over N.

    Args:
        student, teacher (Tensor): Deltas, (N, 4 * C), or (N, 4) if they do not depend on the class.
        labels (Tensor): Class of each RoI, (N, ); ``num_classes`` is the background.
        num_classes (int): C.
    """
    foreground = ((labels >= 0) & (labels < num_classes)).nonzero()[:, 0]
    distance = (at_least_float32(student) - at_least_float32(teacher)).abs()
    distance = distance.view(len(labels), student.shape[1] // 4, 4).sum(-1)
    column = labels[foreground] if distance.shape[1] > 1 else torch.zeros_like(foreground)
    return distance[foreground, column].sum() / max(1, len(labels))


def mean_square(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference, 0 if there is nothing to compare."""
    return F.mse_loss(student, teacher, reduction='sum') / max(1, student.numel())


@MODELS.register_module()
class InstanceGraphLoss(nn.Module):
    """Difference of two instance graphs of a batch (Section 3 of the paper).

    The nodes of an image are its pooled instance features, the edges their cosine similarities.
    Every term is a mean over an image and a sum over images.

    Args:
        node_fg (float, optional): Weight of the foreground nodes. Defaults to 0.5.
        node_bg (dict, optional): ``weight`` of the background nodes, and ``alpha``, which
            multiplies it with ``alpha * F / B`` for F foreground and B background RoIs in the
            image. Defaults to ``dict(weight=0.5, alpha=7.5)``.
        edge (float, optional): Weight of the edges. Defaults to 2.0.
        mine_thr (float, optional): Background RoIs whose cross entropy to the background, as the
            teacher sees them, is at least this become nodes of the graph of edges, next to the
            foreground. 0 takes all of them. Defaults to 0.6; None takes none.
        max_nodes (int, optional): Cap on the number of nodes of an image's graph. Foreground nodes
            stay in any case; of the background those with the highest cross entropy fill up the
            rest. Defaults to None, no cap.

    A term with weight None or 0 is left out.
    """

    def __init__(
        self,
        node_fg: Optional[float] = 0.5,
        node_bg: Optional[dict] = dict(weight=0.5, alpha=7.5),
        edge: Optional[float] = 2.0,
        mine_thr: Optional[float] = 0.6,
        max_nodes: Optional[int] = None,
    ) -> None:
        super().__init__()
        _check_term('node_bg', node_bg, {'weight', 'alpha'})
        if max_nodes is not None and max_nodes < 1:
            raise ValueError(f'max_nodes must be at least 1 or None, got {max_nodes}')
        self.node_fg, self.edge = node_fg, edge
        self.node_bg = None if node_bg is None else dict(weight=0.5, alpha=7.5) | dict(node_bg)
        self.mine_thr, self.max_nodes = mine_thr, max_nodes

    @property
    def enabled(self) -> bool:
        """Whether any term has a weight."""
        return bool(self.node_fg or loss_weight(self.node_bg) or self.edge)

    @property
    def mines(self) -> bool:
        """Whether the teacher's logits are needed."""
        return bool(self.edge) and self.mine_thr is not None

    def mined(self, logits: Tensor, num_fg: int) -> Tensor:
        """Indices, ascending, of the background RoIs of one image that become nodes.

        Args:
            logits (Tensor): The teacher's class logits of the background RoIs, (B, C + 1).
            num_fg (int): Foreground nodes of the image.
        """
        entropy = background_entropy(logits)
        hard = (entropy >= self.mine_thr).nonzero()[:, 0]
        if self.max_nodes is not None:
            room = min(len(hard), max(0, self.max_nodes - num_fg))
            hard = hard[entropy[hard].topk(room).indices].sort().values
        return hard

    def forward(
        self,
        student_fg: Sequence[Tensor],
        teacher_fg: Sequence[Tensor],
        student_bg: Optional[Sequence[Tensor]] = None,
        teacher_bg: Optional[Sequence[Tensor]] = None,
        teacher_bg_logits: Optional[Sequence[Tensor]] = None,
    ) -> Dict[str, Tensor]:
        """Compare the graphs of a batch, in float32.

        Args:
            student_fg, teacher_fg (Sequence[Tensor]): Foreground features of each image,
                (F_i, D, h, w). Any F_i may be 0.
            student_bg, teacher_bg (Sequence[Tensor], optional): Background features of each image,
                (B_i, D, h, w). Defaults to None, no background: what one-stage detectors have.
            teacher_bg_logits (Sequence[Tensor], optional): The teacher's class logits of the
                background, (B_i, C + 1) with the background class last. Needed for mining.

        Returns:
            dict: ``loss_node_fg``, ``loss_node_bg``, ``loss_edge``: those that are switched on.

        Raises:
            ValueError: If student and teacher features differ in shape, or the logits are missing.
        """
        fg = _pairs('foreground', student_fg, teacher_fg)
        bg = _pairs('background', student_bg, teacher_bg) if student_bg is not None else None
        losses = {}
        if self.node_fg:
            losses['loss_node_fg'] = self.node_fg * sum(mean_square(s, t) for s, t in fg)
        if loss_weight(self.node_bg) and bg is not None:
            shares = [len(f) / max(1, len(b)) for (f, _), (b, _) in zip(fg, bg)]
            errors = [share * mean_square(s, t) for share, (s, t) in zip(shares, bg)]
            losses['loss_node_bg'] = self.node_bg['weight'] * self.node_bg['alpha'] * sum(errors)
        if self.edge:
            if self.mines and bg is not None:
                if teacher_bg_logits is None:
                    raise ValueError(
                        'mining background nodes needs teacher_bg_logits; give them, or set mine_thr=None'
                    )
                kept = [self.mined(c, len(f)) for c, (f, _) in zip(teacher_bg_logits, fg)]
                fg = [
                    (torch.cat([f, b[k]]), torch.cat([g, c[k]]))
                    for (f, g), (b, c), k in zip(fg, bg, kept)
                ]
            errors = [mean_square(edge_matrix(s), edge_matrix(t)) for s, t in fg]
            losses['loss_edge'] = self.edge * 0.5 * sum(errors)
        return losses


def _pairs(
    what: str, student: Sequence[Tensor], teacher: Sequence[Tensor]
) -> List[Tuple[Tensor, Tensor]]:
    shapes = [[tuple(t.shape) for t in side] for side in (student, teacher or ())]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f'student and teacher must have pooled {what} features of the same shape in each image: '
            f'got {shapes[0]} and {shapes[1]}. Pool the same boxes, from features of the same width.'
        )
    return [(at_least_float32(s), at_least_float32(t)) for s, t in zip(student, teacher)]


def _check_term(name: str, term: Optional[dict], known: set) -> None:
    if term is not None and (not isinstance(term, dict) or set(term) - known):
        raise ValueError(f'{name} must be None or a dict of {sorted(known)}, got {term!r}')


@HOOKS.register_module()
class InstanceGraphDistillHook(DistillHook):
    """Add the losses of Dsig to a stock detector.

    A two-stage student shares its sampled RoIs with the teacher, a one-stage student its own best
    100 detections. Both networks pool them from their own pyramids, and the graphs of the pooled
    features are compared. There are no adapters: both pyramids must have the same width. Of a
    cascade the first stage is used.

    The defaults are those of the published Faster R-CNN with a ResNet-18 and a ResNet-50 teacher.

    Args:
        teacher (dict): ``config`` and ``checkpoint``; see :class:`~mmextra.distill.base.Teacher`.
        feat (float, optional): Weight of the squared difference of the pyramids, a mean over each
            level and a sum over levels. Defaults to 0.5.
        node_fg, node_bg, edge, mine_thr, max_nodes: See :class:`InstanceGraphLoss`.
        roi_cls (dict, optional): ``weight`` and temperature ``T`` of the distillation of class
            logits: of all sampled RoIs, or of all anchors that the assigner does not ignore.
            Defaults to ``dict(weight=3.0, T=1.0)``.
        roi_reg (float, optional): Weight of the distillation of box deltas of the foreground.
            Defaults to 1.0.
        **window: ``begin``, ``end``, ``warmup``, ``by_epoch`` of
            :class:`~mmextra.distill.base.DistillHook`.

    Raises:
        ValueError: At the start of a run, if the two detectors cannot be compared. The message
            names what differs and how to mend it.
    """

    student_records = ('roi_head.bbox_loss()',)

    def __init__(
        self,
        teacher: dict,
        feat: Optional[float] = 0.5,
        node_fg: Optional[float] = 0.5,
        node_bg: Optional[dict] = dict(weight=0.5, alpha=7.5),
        edge: Optional[float] = 2.0,
        mine_thr: Optional[float] = 0.6,
        roi_cls: Optional[dict] = dict(weight=3.0, T=1.0),
        roi_reg: Optional[float] = 1.0,
        max_nodes: Optional[int] = None,
        **window,
    ) -> None:
        super().__init__(teacher, **window)
        _check_term('roi_cls', roi_cls, {'weight', 'T'})
        self.graph = InstanceGraphLoss(node_fg, node_bg, edge, mine_thr, max_nodes)
        self.feat, self.roi_cls, self.roi_reg = feat, roi_cls, roi_reg
        self.extractor: Optional[SingleRoIExtractor] = None

    @property
    def distills_logits(self) -> bool:
        """Whether class logits or box deltas are distilled."""
        return bool(loss_weight(self.roi_cls) or self.roi_reg)

    @property
    def enabled(self) -> bool:
        """Whether any term has a weight."""
        return bool(self.feat or self.graph.enabled or self.distills_logits)

    def before_run(self, runner: Runner) -> None:
        """Record the heads of a one-stage student instead of the RoIs, then start."""
        student = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not isinstance(student, TwoStageDetector):
            self.student_records = ('bbox_head',)
            if self.distills_logits and _labels_anchors(student):
                self.student_records += ('bbox_head.get_targets()',)
        super().before_run(runner)

    # What student and teacher must have in common.

    def check(self, student: nn.Module, teacher: nn.Module) -> None:
        """Both detectors must have equal pyramids and, as far as they are used, equal heads."""
        two_stage = isinstance(student, TwoStageDetector)
        if not two_stage and not _can_predict(student):
            raise ValueError(
                f'{type(self).__name__} needs a TwoStageDetector, or a SingleStageDetector whose head '
                f'has predict_by_feat with a cfg; the student is {type(student).__name__}'
            )
        maps = blank_features(student)
        check_pyramids(maps, blank_features(teacher, side='teacher'))
        if two_stage:
            if self.graph.enabled or self.distills_logits:
                self._check_two_stage(student, teacher)
            return
        if self.graph.enabled:
            self.extractor = dense_extractor(maps, BLANK_SIZE)
        if self.distills_logits:
            self._check_one_stage(student, teacher, maps)

    def _check_two_stage(self, student: nn.Module, teacher: nn.Module) -> None:
        facts = []
        for side, model in (('student', student), ('teacher', teacher)):
            roi_head = getattr(model, 'roi_head', None)
            if not isinstance(roi_head, (StandardRoIHead, CascadeRoIHead)) or (
                'sampling_results' not in signature(type(roi_head).bbox_loss).parameters
            ):
                raise ValueError(
                    f'the graph of a two-stage student needs a standard or cascade RoI head; the {side} '
                    f'({type(model).__name__}) has {type(roi_head).__name__}. Take a teacher of the '
                    "student's kind, or feat alone."
                )
            facts.append(self._roi_facts(roi_head))
        for name, value in facts[0].items():
            if facts[1][name] != value:
                raise ValueError(
                    f'student and teacher must agree in {name}: the student has {value}, the teacher '
                    f'{facts[1][name]}. {self._remedy(name)}'
                )

    def _roi_facts(self, roi_head: nn.Module) -> dict:
        """What two RoI heads must agree in."""
        extractor, head = _first(roi_head.bbox_roi_extractor), _first(roi_head.bbox_head)
        layer = extractor.roi_layers[0]
        facts = dict(
            featmap_strides=list(extractor.featmap_strides),
            finest_scale=getattr(extractor, 'finest_scale', None),
            roi_size=tuple(layer.output_size),
            sampling_ratio=getattr(layer, 'sampling_ratio', None),
            aligned=getattr(layer, 'aligned', None),
        )
        if self.graph.mines or loss_weight(self.roi_cls):
            facts['cls_channels'] = head.fc_cls.out_features
            if head.loss_cls.use_sigmoid or head.custom_cls_channels:
                raise ValueError(
                    f'mining and roi_cls need a softmax over the classes and the background; '
                    f'{type(head).__name__} uses {type(head.loss_cls).__name__}. Set mine_thr=None '
                    'and roi_cls=None.'
                )
        if self.roi_reg:
            facts['num_classes'] = head.num_classes
            facts['reg_class_agnostic'] = head.reg_class_agnostic
            facts['target_means'] = getattr(head.bbox_coder, 'means', None)
            facts['target_stds'] = getattr(head.bbox_coder, 'stds', None)
        return facts

    def _remedy(self, name: str) -> str:
        if name == 'cls_channels':
            return (
                "Train a teacher on the student's classes, or set mine_thr=None and roi_cls=None."
            )
        if name in ('num_classes', 'reg_class_agnostic', 'target_means', 'target_stds'):
            return 'Set roi_reg=None, or give both box heads the same regression.'
        return "Give the teacher's bbox_roi_extractor the student's settings."

    def _check_one_stage(
        self, student: nn.Module, teacher: nn.Module, maps: Tuple[Tensor, ...]
    ) -> None:
        outs = []
        for side, model in (('student', student), ('teacher', teacher)):
            if not _labels_anchors(model):
                raise ValueError(
                    f'roi_cls and roi_reg need a head that labels anchors, like RetinaHead; the {side} '
                    f'({type(model).__name__}) has none. Set roi_cls=None and roi_reg=None.'
                )
            with torch.no_grad(), evaluating(model):
                cls, box = model.bbox_head.forward(maps)[:2]
            outs.append([[m.shape[1] for m in cls], [m.shape[1] for m in box]])
        if outs[0] != outs[1]:
            raise ValueError(
                'roi_cls and roi_reg need the same classes and anchors: the student predicts '
                f'{outs[0][0]} class and {outs[0][1]} box channels on its levels, the teacher '
                f'{outs[1][0]} and {outs[1][1]}. Set roi_cls=None and roi_reg=None, or train '
                "a teacher with the student's classes and anchors."
            )
        head = student.bbox_head
        numbers = outs[0][1][0] // head.prior_generator.num_base_priors[0]
        if self.roi_reg and numbers != head.bbox_coder.encode_size:
            raise ValueError(
                f'roi_reg compares box deltas, and {type(head).__name__} predicts {numbers} numbers a '
                'box. Set roi_reg=None (for distributions there is '
                'mmextra.LocalizationDistillationHook).'
            )

    # The losses.

    def losses(
        self, student: Recorder, teacher: Teacher, inputs: Tensor, data_samples: list
    ) -> LossDict:
        """``loss_feat``, ``loss_node_fg``, ``loss_node_bg``, ``loss_edge`` and, for a two-stage
        student, ``loss_roi_cls``, ``loss_roi_reg``, for a one-stage student ``loss_cls_kd``,
        ``loss_reg_kd``."""
        if isinstance(student.model, TwoStageDetector):
            return self.two_stage_losses(student, teacher)
        return self.one_stage_losses(student, teacher, [s.metainfo for s in data_samples])

    def feature_loss(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> LossDict:
        """Squared difference of the pyramids, summed over levels."""
        if not self.feat:
            return {}
        check_pyramids(student, teacher)
        levels = [
            mean_square(at_least_float32(s), at_least_float32(t)) for s, t in zip(student, teacher)
        ]
        return dict(loss_feat=self.feat * sum(levels))

    def two_stage_losses(self, student: Recorder, teacher: Teacher) -> LossDict:
        """Nodes are the RoIs that the student sampled, image by image, foreground first."""
        roi_head = student.model.roi_head
        call = student.calls('roi_head.bbox_loss()')[0]  # of a cascade, the first stage
        given = signature(type(roi_head).bbox_loss).bind(roi_head, *call.args, **call.kwargs)
        samples, own = given.arguments['sampling_results'], call.output
        result = self.feature_loss(given.arguments['x'], teacher.features)
        if not (self.graph.enabled or self.distills_logits):
            return result
        rois, features = bbox2roi([s.priors for s in samples]), teacher.features
        with teacher.context() as model:
            stage = (0,) if isinstance(model.roi_head, CascadeRoIHead) else ()
            other = model.roi_head._bbox_forward(*stage, features, rois)
        counts = [len(boxes) for s in samples for boxes in (s.pos_priors, s.neg_priors)]

        def split(rows: Tensor) -> Tuple[Sequence[Tensor], Sequence[Tensor]]:
            parts = rows.split(counts)
            return parts[0::2], parts[1::2]

        own_fg, own_bg = split(own['bbox_feats'])
        other_fg, other_bg = split(other['bbox_feats'])
        logits = split(other['cls_score'])[1]
        result.update(self.graph(own_fg, other_fg, own_bg, other_bg, logits))
        if loss_weight(self.roi_cls):
            kl = mean_kl(own['cls_score'], other['cls_score'], self.roi_cls.get('T', 1.0))
            result['loss_roi_cls'] = loss_weight(self.roi_cls) * kl
        if self.roi_reg:
            classes = _first(roi_head.bbox_head).num_classes
            negative = [s.pos_gt_labels.new_full((len(s.neg_priors),), classes) for s in samples]
            labels = [part for s, n in zip(samples, negative) for part in (s.pos_gt_labels, n)]
            distance = class_box_l1(
                own['bbox_pred'], other['bbox_pred'], torch.cat(labels), classes
            )
            result['loss_roi_reg'] = self.roi_reg * distance
        return result

    def one_stage_losses(self, student: Recorder, teacher: Teacher, metas: List[dict]) -> LossDict:
        """Nodes are the student's own detections; there is no background."""
        head, call = student.model.bbox_head, student.calls('bbox_head')[0]
        features = [at_least_float32(level) for level in call.args[0]]
        result = self.feature_loss(features, teacher.features)
        if self.graph.enabled:
            boxes = self.detections(head, features, call.output, metas)
            rois, counts = bbox2roi(boxes), [len(b) for b in boxes]
            own = self.extractor(features, rois)
            other = self.extractor([at_least_float32(level) for level in teacher.features], rois)
            result.update(self.graph(own.split(counts), other.split(counts)))
        if self.distills_logits:
            targets = student.calls('bbox_head.get_targets()')[0].output
            result.update(self.dense_losses(head, call.output, teacher.head, targets))
        return result

    @torch.no_grad()
    def detections(
        self, head: nn.Module, features: Sequence[Tensor], outs: tuple, metas: List[dict]
    ) -> List[Tensor]:
        """The boxes, (n, 4) in pixels of the network's input, that a head finds in each image."""
        if not _same_in_both_modes(head):
            with evaluating(head):  # `forward` alone: other hooks see the head run once
                outs = head.forward(tuple(features))
        outs = [[at_least_float32(level) for level in maps] for maps in outs]
        results = head.predict_by_feat(*outs, batch_img_metas=metas, cfg=DETECTIONS, rescale=False)
        return [image.bboxes for image in results]

    def dense_losses(
        self, head: nn.Module, student: tuple, teacher: tuple, targets: tuple
    ) -> LossDict:
        """Distil class logits of every anchor that counts, and deltas of the positive ones."""
        at = LABELS_AT[type(head).get_targets]
        labels, weights = (torch.cat([t.flatten() for t in targets[i]]) for i in (at, at + 1))
        result = {}
        if loss_weight(self.roi_cls):
            own, other = (_rows(o[0], head.cls_out_channels) for o in (student, teacher))
            counted = weights > 0
            kl = mean_kl(own[counted], other[counted], self.roi_cls.get('T', 1.0))
            result['loss_cls_kd'] = loss_weight(self.roi_cls) * kl
        if self.roi_reg:
            own, other = (_rows(o[1], head.bbox_coder.encode_size) for o in (student, teacher))
            positive = (labels >= 0) & (labels < head.num_classes)
            distance = (own[positive] - other[positive]).abs().sum() / max(1, int(positive.sum()))
            result['loss_reg_kd'] = self.roi_reg * distance
        return result


def _first(part: nn.Module) -> nn.Module:
    """A part of a RoI head; of a cascade, that of the first stage."""
    return part[0] if isinstance(part, nn.ModuleList) else part


def _can_predict(model: nn.Module) -> bool:
    """Whether a one-stage detector finds boxes with settings that are given to it."""
    predict = getattr(getattr(model, 'bbox_head', None), 'predict_by_feat', None)
    return (
        isinstance(model, SingleStageDetector)
        and predict is not None
        and 'cfg' in signature(predict).parameters
    )


def _labels_anchors(model: nn.Module) -> bool:
    """Whether a detector has a dense head whose targets can be read."""
    head = getattr(model, 'bbox_head', None)
    return getattr(type(head), 'get_targets', None) in LABELS_AT


def _same_in_both_modes(head: nn.Module) -> bool:
    """Whether what a dense head said in this training iteration can be decoded as it is."""
    forward = getattr(type(head), 'forward_single', None)
    if forward is FCOSHead.forward_single:
        return not head.norm_on_bbox
    return forward in SAME_IN_BOTH_MODES


def _rows(maps: Sequence[Tensor], channels: int) -> Tensor:
    """Maps of all levels, (B, A * channels, H, W), as rows (anchors, channels) in the order of the
    targets: level, image, cell, anchor."""
    return torch.cat(
        [m.permute(0, 2, 3, 1).reshape(-1, channels) for m in map(at_least_float32, maps)]
    )


def dense_extractor(maps: Sequence[Tensor], image_size: Sequence[int]) -> SingleRoIExtractor:
    """Pools 7x7 from every level of a dense detector.

    Boxes with a side below 28 strides of the finest level (224 pixels for stride 8) are pooled
    there, those below twice that from the next level, and so on.

    Args:
        maps (Sequence[Tensor]): Feature maps (B, D, H, W), finest first.
        image_size (Sequence[int]): Height and width of the image that they are of.

    Raises:
        ValueError: If the levels are not a pyramid of one width, finest first.
    """
    widths, sizes = [m.shape[1] for m in maps], [tuple(m.shape[-2:]) for m in maps]
    if len(set(widths)) > 1 or sizes != sorted(sizes, reverse=True):
        raise ValueError(
            'the graph of a one-stage student needs a pyramid of one width, finest level first; its '
            f'levels have {widths} channels and {sizes} cells. Use an FPN, or set node_fg=None and edge=None.'
        )
    strides = pyramid_strides(image_size, maps)
    return SingleRoIExtractor(
        roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
        out_channels=widths[0],
        featmap_strides=strides,
        finest_scale=14 * strides[0],
    )
