"""How far oriented predictions are from oriented objects: overlaps and the costs of matching."""

from typing import Optional, Union

from mmdet.models.task_modules.assigners.match_cost import BaseMatchCost
from mmdet.structures.bbox import BaseBoxes, get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor

from mmextra.det.oriented.losses import check_gaussian, gaussian_loss
from mmextra.ops.rotated import ANGLE_DIFFERENCES, oriented_l1
from mmextra.registry import TASK_UTILS
from mmextra.structures.oriented_boxes import oriented_overlaps


@TASK_UTILS.register_module()
class OrientedOverlaps2D:
    """IoU calculator for stock assigners, on oriented boxes."""

    def __call__(
        self,
        bboxes1: Union[Tensor, BaseBoxes],
        bboxes2: Union[Tensor, BaseBoxes],
        mode: str = 'iou',
        is_aligned: bool = False,
    ) -> Tensor:
        """Overlaps of (M, 5) and (N, 5) boxes: (M, N), or (M, ) if aligned.

        See :func:`mmextra.structures.oriented_boxes.oriented_overlaps`.
        """
        return oriented_overlaps(bboxes1, bboxes2, mode, is_aligned)

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'


class OrientedCost(BaseMatchCost):
    """A cost between the oriented ``bboxes`` of predictions and of objects, in pixels and radians."""

    def __call__(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        img_meta: Optional[dict] = None,
        **kwargs,
    ) -> Tensor:
        """Costs (M, N) of M predictions and N objects."""
        pred, gt = (get_box_tensor(i.bboxes) for i in (pred_instances, gt_instances))
        return self.weight * self.cost(pred, gt.to(pred.device), img_meta)

    def cost(self, pred: Tensor, gt: Tensor, img_meta: Optional[dict]) -> Tensor:
        """Costs (M, N) of boxes (M, 5) and (N, 5), without the weight."""
        raise NotImplementedError


@TASK_UTILS.register_module()
class OrientedL1Cost(OrientedCost):
    """Sum of the absolute differences of the five numbers; see :func:`mmextra.ops.rotated.oriented_l1`.

    Args:
        weight (float): Defaults to 1.
        angle_diff (str): ``'periodic'`` or ``'plain'``. Defaults to ``'periodic'``.
        square_aware (bool): Whether the angle of square objects counts less. Defaults to False.
    """

    def __init__(
        self, weight: float = 1.0, angle_diff: str = 'periodic', square_aware: bool = False
    ) -> None:
        super().__init__(weight)
        if angle_diff not in ANGLE_DIFFERENCES:
            raise ValueError(f'angle_diff must be one of {ANGLE_DIFFERENCES}, got {angle_diff!r}')
        self.angle_diff, self.square_aware = angle_diff, square_aware

    def cost(self, pred: Tensor, gt: Tensor, img_meta: Optional[dict]) -> Tensor:
        height, width = img_meta['img_shape'][:2]
        factor = pred.new_tensor([width, height, width, height])
        difference = oriented_l1(
            pred[:, None], gt[None], factor, self.angle_diff, self.square_aware
        )
        return difference.sum(-1)


@TASK_UTILS.register_module()
class OrientedIoUCost(OrientedCost):
    """Minus the rotated IoU.

    Args:
        weight (float): Defaults to 1.
    """

    def cost(self, pred: Tensor, gt: Tensor, img_meta: Optional[dict]) -> Tensor:
        return -oriented_overlaps(pred, gt)


@TASK_UTILS.register_module()
class OrientedGDCost(OrientedCost):
    """The Gaussian loss of :class:`~mmextra.det.oriented.losses.OrientedGDLoss` as a cost.

    Args:
        loss_type (str): ``'gwd'`` or ``'kld'``. Defaults to ``'gwd'``.
        fun (str): ``'log1p'``, ``'sqrt'`` or ``'none'``. Defaults to ``'log1p'``.
        tau (float): Defaults to 1.
        alpha (float): Weight of the shapes against the centres. Defaults to 1.
        weight (float): Defaults to 1.
    """

    def __init__(
        self,
        loss_type: str = 'gwd',
        fun: str = 'log1p',
        tau: float = 1.0,
        alpha: float = 1.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight)
        check_gaussian(loss_type, fun)
        self.options = dict(loss_type=loss_type, fun=fun, tau=tau, alpha=alpha)

    def cost(self, pred: Tensor, gt: Tensor, img_meta: Optional[dict]) -> Tensor:
        return gaussian_loss(pred[:, None], gt[None], **self.options)
