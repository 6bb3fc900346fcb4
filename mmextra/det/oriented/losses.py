"""Losses between pairs of oriented boxes."""

from typing import Optional, Union

import torch
from mmdet.models.losses.utils import weight_reduce_loss
from mmdet.structures.bbox import BaseBoxes, get_box_tensor
from torch import Tensor, nn

from mmextra.ops.rotated import GAUSSIAN_DISTANCES, gaussian_distance, rotated_iou
from mmextra.registry import MODELS

REDUCTIONS = ('none', 'mean', 'sum')
FUNCTIONS = dict(log1p=torch.log1p, sqrt=lambda d: d.clamp(min=1e-7).sqrt(), none=lambda d: d)


def check_gaussian(loss_type: str, fun: str) -> None:
    """Raise a ValueError for options that :func:`gaussian_loss` does not know."""
    if loss_type not in GAUSSIAN_DISTANCES:
        raise ValueError(f'loss_type must be one of {GAUSSIAN_DISTANCES}, got {loss_type!r}')
    if fun not in FUNCTIONS:
        raise ValueError(f'fun must be one of {[*FUNCTIONS]}, got {fun!r}')


def gaussian_loss(
    pred: Tensor,
    target: Tensor,
    loss_type: str = 'gwd',
    fun: str = 'log1p',
    tau: float = 1.0,
    alpha: float = 1.0,
) -> Tensor:
    """``1 - 1 / (tau + fun(d))`` of the Gaussian distance d of boxes; ``fun(d)`` if ``tau < 1``.

    Args:
        pred, target (Tensor): Boxes (..., 5), of shapes that broadcast.
        loss_type, fun, tau, alpha: See :class:`OrientedGDLoss`.

    Returns:
        Tensor: Losses of the broadcast shape.
    """
    value = FUNCTIONS[fun](gaussian_distance(pred, target, loss_type, alpha))
    return 1 - 1 / (tau + value) if tau >= 1 else value


class OrientedLoss(nn.Module):
    """A loss between aligned oriented boxes, with the arguments of mmdet's box losses.

    Args:
        reduction (str): ``'none'``, ``'mean'`` or ``'sum'``. Defaults to ``'mean'``.
        loss_weight (float): Defaults to 1.
    """

    def __init__(self, reduction: str = 'mean', loss_weight: float = 1.0) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f'reduction must be one of {REDUCTIONS}, got {reduction!r}')
        self.reduction, self.loss_weight = reduction, loss_weight

    def forward(
        self,
        pred: Union[Tensor, BaseBoxes],
        target: Union[Tensor, BaseBoxes],
        weight: Optional[Tensor] = None,
        avg_factor: Optional[float] = None,
        reduction_override: Optional[str] = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            pred, target (Tensor | OrientedBoxes): Boxes in pixels and radians, (N, 5).
            weight (Tensor, optional): Weights of the pairs, (N, ) or (N, 5).
            avg_factor (float, optional): Divides the sum of the losses, with reduction ``'mean'``.
            reduction_override (str, optional): Used in place of ``reduction``.

        Returns:
            Tensor: A scalar, or (N, ) without reduction. Zero, with a gradient, for no pairs.
        """
        reduction = reduction_override or self.reduction
        if reduction not in REDUCTIONS:
            raise ValueError(f'reduction_override must be one of {REDUCTIONS}, got {reduction!r}')
        pred, target = get_box_tensor(pred), get_box_tensor(target)
        if weight is not None and weight.dim() > 1:
            weight = weight.mean(-1)
        if reduction != 'none' and (len(pred) == 0 or (weight is not None and not weight.any())):
            return pred.sum() * 0
        loss = self.pair_loss(pred, target)
        return self.loss_weight * weight_reduce_loss(loss, weight, reduction, avg_factor)

    def pair_loss(self, pred: Tensor, target: Tensor) -> Tensor:
        """Losses (N, ) of boxes (N, 5)."""
        raise NotImplementedError


@MODELS.register_module()
class OrientedIoULoss(OrientedLoss):
    """One less the rotated IoU, or minus its logarithm.

    Args:
        mode (str): ``'linear'``: ``1 - IoU``. ``'log'``: ``-log(IoU)``. Defaults to ``'linear'``.
        eps (float): Smallest IoU inside the logarithm. Defaults to 1e-6.
        reduction (str): Defaults to ``'mean'``.
        loss_weight (float): Defaults to 1.
    """

    def __init__(
        self,
        mode: str = 'linear',
        eps: float = 1e-6,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(reduction, loss_weight)
        if mode not in ('linear', 'log'):
            raise ValueError(f"mode must be 'linear' or 'log', got {mode!r}")
        self.mode, self.eps = mode, eps

    def pair_loss(self, pred: Tensor, target: Tensor) -> Tensor:
        iou = rotated_iou(pred, target)
        return 1 - iou if self.mode == 'linear' else -iou.clamp(min=self.eps).log()


@MODELS.register_module()
class OrientedGDLoss(OrientedLoss):
    """Gaussian distance loss: boxes as Gaussians, whose distance is smooth where the angle is not.

    Args:
        loss_type (str): ``'gwd'``, the normalised Wasserstein distance, or ``'kld'``, the square
            root of the Kullback-Leibler divergence. Defaults to ``'gwd'``.
        fun (str): Applied to the distance: ``'log1p'``, ``'sqrt'`` or ``'none'``. Defaults to
            ``'log1p'``.
        tau (float): The loss is ``1 - 1 / (tau + fun(d))``; below 1 it is ``fun(d)``. Defaults
            to 1.
        alpha (float): Weight of the shapes against the centres. Defaults to 1.
        reduction (str): Defaults to ``'mean'``.
        loss_weight (float): Defaults to 1.
    """

    def __init__(
        self,
        loss_type: str = 'gwd',
        fun: str = 'log1p',
        tau: float = 1.0,
        alpha: float = 1.0,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(reduction, loss_weight)
        check_gaussian(loss_type, fun)
        self.loss_type = loss_type
        self.options = dict(loss_type=loss_type, fun=fun, tau=tau, alpha=alpha)

    def pair_loss(self, pred: Tensor, target: Tensor) -> Tensor:
        return gaussian_loss(pred, target, **self.options)
