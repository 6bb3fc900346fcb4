"""The hook that puts ReviewKD on a stock student."""

from typing import List, Optional, Sequence, Tuple, Union

import torch
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmextra.distill.base import DistillHook, LossDict, Recorder, Teacher
from mmextra.distill.pyramid import BLANK_SIZE, as_maps, evaluating
from mmextra.distill.reviewkd.fusion import check_levels
from mmextra.ops.precision import at_least_float32
from mmextra.registry import HOOKS, MODELS


def before_last_relu(model: nn.Module, name: str) -> str:
    """The record of what the last ReLU of a stage takes in.

    Args:
        model (nn.Module): The model that has the stage.
        name (str): Name of a stage of residual blocks that end in a ReLU, ``'backbone.layer4'``.

    Returns:
        str: ``'backbone.layer4.1.relu:input'``; or ``name`` itself, if the stage ends otherwise.
    """
    modules = dict(model.named_modules())
    stage = modules.get(name)
    if isinstance(stage, nn.Sequential) and len(stage):
        block = f'{name}.{list(stage._modules)[-1]}'
        if isinstance(getattr(modules[block], 'relu', None), nn.ReLU):
            return f'{block}.relu:input'
    return name


def feature_levels(recorder: Recorder, names: Sequence[str]) -> List[Tensor]:
    """What was recorded, as maps (B, C, H, W) of at least float32, in the order of the names.

    A layer may give several maps (a neck: all its levels). Of pooled vectors (B, C) the last is
    taken, as a map of 1x1.

    Raises:
        ValueError: If a layer gives neither maps nor vectors.
    """
    levels = []
    for name in names:
        outputs = as_maps(recorder[name])
        if outputs[-1].ndim == 2:
            outputs = (outputs[-1][:, :, None, None],)
        if any(x.ndim != 4 for x in outputs):
            raise ValueError(
                f'{name!r} of the {recorder.side} gives {[tuple(x.shape) for x in outputs]}; ReviewKD '
                'needs maps (B, C, H, W) or pooled vectors (B, C): name other layers'
            )
        levels += [at_least_float32(x) for x in outputs]
    return levels


@HOOKS.register_module()
class ReviewKDHook(DistillHook):
    """Distil features with knowledge review, on any stock detector or classifier.

    At every level the student's feature, fused with all its deeper ones, has to match the teacher's.
    Adds ``loss_hcl``. The fusion is trained beside the student, and is gone afterwards.

    In detectors the levels are those of the neck. In classifiers they are the stages and the pooled
    feature, ``['backbone.layer1', ..., 'backbone.layer4', 'neck']``.

    Args:
        teacher (dict): See :class:`mmextra.distill.base.DistillHook`. With ``mode='train'`` the
            teacher uses batch statistics, as in the authors' CIFAR code.
        student_layers (str | Sequence[str]): Submodules whose outputs are the student's levels,
            shallow to deep; names as in :class:`mmextra.distill.base.Recorder`. Defaults to
            ``'neck'``.
        teacher_layers (str | Sequence[str], optional): The same of the teacher, within its backbone
            and neck. Defaults to None, as ``student_layers``.
        student_channels, teacher_channels (Sequence[int], optional): Channels of the levels.
            Default to None: found out from a blank image.
        mid_channels (int, optional): Channels in which levels are fused. Defaults to None, those of
            the student's deepest level, at most 512.
        loss_weight (float): Weight of the loss. Defaults to 1.0.
        pre_relu (bool | dict): Whether to take a stage's feature before its last ReLU;
            ``dict(student=..., teacher=...)`` for each side apart. It concerns stages of residual
            blocks (ResNet and its kin); other layers are taken as they are. Defaults to False.
        resize_to_teacher (bool): Whether a fused level is resized to the teacher's, where
            the two nets have other strides or input sizes. Defaults to False.
        fusion (dict): Config of the adapters, say ``dict(norm_cfg=dict(type='SyncBN'))``; channels
            are filled in. Defaults to ``dict(type='mmextra.ReviewFusion')``.
        loss (dict): Config of the loss. Defaults to
            ``dict(type='mmextra.HierarchicalContextLoss')``.
        **kwargs: ``begin``, ``end``, ``warmup``, ``by_epoch`` of
            :class:`mmextra.distill.base.DistillHook`.

    Raises:
        ValueError: If the levels of student and teacher differ in number, or in size without
            ``resize_to_teacher``, or have other channels than given.

    Example:
        >>> custom_hooks = [
        ...     dict(
        ...         type='mmextra.ReviewKDHook',
        ...         teacher=dict(config='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
        ...                      checkpoint='retinanet_r101.pth'))
        ... ]
    """

    def __init__(
        self,
        teacher: dict,
        student_layers: Union[str, Sequence[str]] = 'neck',
        teacher_layers: Union[str, Sequence[str], None] = None,
        student_channels: Optional[Sequence[int]] = None,
        teacher_channels: Optional[Sequence[int]] = None,
        mid_channels: Optional[int] = None,
        loss_weight: float = 1.0,
        pre_relu: Union[bool, dict] = False,
        resize_to_teacher: bool = False,
        fusion: dict = dict(),
        loss: dict = dict(),
        **kwargs,
    ) -> None:
        super().__init__(teacher, **kwargs)
        if isinstance(pre_relu, dict) and set(pre_relu) - {'student', 'teacher'}:
            raise ValueError(
                f'pre_relu must be a bool or dict(student=..., teacher=...), got {pre_relu}'
            )
        if student_channels and teacher_channels:
            check_levels(student_channels, teacher_channels)
        self.student_layers = _names(student_layers)
        self.teacher_layers = _names(teacher_layers) if teacher_layers else self.student_layers
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        self.loss_weight = loss_weight
        both = dict(student=pre_relu, teacher=pre_relu)
        self.pre_relu = pre_relu if isinstance(pre_relu, dict) else both
        self.resize_to_teacher = resize_to_teacher
        self.fusion = {'type': 'mmextra.ReviewFusion', **fusion}
        if mid_channels is not None:
            self.fusion['mid_channels'] = mid_channels
        self.loss = MODELS.build({'type': 'mmextra.HierarchicalContextLoss', **loss})
        self.student_records = self.student_layers

    @property
    def enabled(self) -> bool:
        """Whether the loss has a weight."""
        return self.loss_weight != 0

    @property
    def teacher_records(self) -> Tuple[str, ...]:
        """The names recorded of the teacher."""
        layers, model = self.teacher_layers, self.teacher.model
        before = self.pre_relu.get('teacher', False)
        return tuple(before_last_relu(model, name) for name in layers) if before else layers

    def find_records(self, student: nn.Module) -> None:
        """Settle the names to record of this student, :attr:`student_records`."""
        layers, before = self.student_layers, self.pre_relu.get('student', False)
        names = tuple(before_last_relu(student, name) for name in layers) if before else layers
        self.student_records = names

    def before_run(self, runner: Runner) -> None:
        """Find out which modules of the student ``pre_relu`` is about, then begin as every method."""
        self.find_records(runner.model.module if is_model_wrapper(runner.model) else runner.model)
        super().before_run(runner)

    def build_adapters(self, student: nn.Module, teacher: nn.Module) -> nn.Module:
        """The fusion, for the channels that were given or found out."""
        own, other, levels = self.student_channels, self.teacher_channels, None
        if not (own and other):
            levels = self._blank_levels(student, teacher)
            measured = [[x.shape[1] for x in maps] for maps in levels]
            own, other = own or measured[0], other or measured[1]
            check_levels(own, other)
        self.channels = dict(student=list(own), teacher=list(other))
        if levels:
            self._check(*levels)
        return MODELS.build(dict(self.fusion, in_channels=own, out_channels=other))

    @torch.no_grad()
    def _blank_levels(self, student: nn.Module, teacher: nn.Module) -> List[List[Tensor]]:
        """The levels of student and teacher for one blank image."""
        levels, size = [], self.teacher.input_size or BLANK_SIZE
        for side, model, names in (
            ('student', student, self.student_records),
            ('teacher', teacher, self.teacher_records),
        ):
            recorder = Recorder(model, side)
            recorder.watch(names)
            recorder.arm()
            image = next(model.parameters()).new_zeros(1, 3, *size)
            try:
                with evaluating(model):
                    model.extract_feat(image)
                levels.append(feature_levels(recorder, names))
            finally:
                recorder.disarm()
        return levels

    def _check(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
        """Raise ``ValueError`` unless the adapters fit these features."""
        for side, features in (('student', student), ('teacher', teacher)):
            channels = [x.shape[1] for x in features]
            if channels != self.channels[side]:
                raise ValueError(
                    f'{side}_channels is {self.channels[side]}, but the levels of the {side} have '
                    f'{channels}: correct it, or leave it out to have it found out'
                )
        sizes = [[tuple(x.shape[-2:]) for x in features] for features in (student, teacher)]
        if sizes[0] != sizes[1] and not self.resize_to_teacher:
            raise ValueError(
                f'the levels of student and teacher differ in size: {sizes[0]} and {sizes[1]}. Name '
                'layers of the same strides, or set resize_to_teacher=True.'
            )

    def losses(
        self, student: Recorder, teacher: Teacher, inputs: Tensor, data_samples: Optional[list]
    ) -> LossDict:
        """The hierarchical context loss (Section 3.3) of each level."""
        own = feature_levels(student, self.student_records)
        teacher.features  # noqa: B018  runs the teacher, whose layers are recorded meanwhile
        other = feature_levels(teacher.records, self.teacher_records)
        self._check(own, other)
        fused = self.adapters(
            own, [x.shape[-2:] for x in other] if self.resize_to_teacher else None
        )
        return dict(loss_hcl=[self.loss_weight * loss for loss in self.loss(fused, other)])


def _names(layers: Union[str, Sequence[str]]) -> Tuple[str, ...]:
    return (layers,) if isinstance(layers, str) else tuple(layers)
