"""ATSS, FCOS and RetinaNet heads that predict box edges as distributions, so that they can be
distilled with LD.

Stock heads of these detectors predict four numbers a box. Here the last regression layer gives ``4
* (reg_max + 1)`` logits; the distance of an edge from the anchor's centre is the expectation of its
distribution, in units of the stride.
"""

from typing import List

import torch
from mmdet.models.dense_heads import ATSSHead, FCOSHead, RetinaHead
from mmdet.models.dense_heads.gfl_head import Integral
from mmdet.models.task_modules.coders import DistancePointBBoxCoder
from torch import Tensor, nn

from mmextra.distill.ld.regions import centers
from mmextra.ops.precision import at_least_float32
from mmextra.registry import MODELS, TASK_UTILS


@TASK_UTILS.register_module()
class CenterDistanceBBoxCoder(DistancePointBBoxCoder):
    """Codes a box as the distances (left, top, right, bottom) of its edges from the centre of an
    anchor, in pixels.

    The stock coder measures from points; this one takes anchors, (N, 4).
    """

    def encode(self, anchors: Tensor, gt_bboxes: Tensor, max_dis=None, eps: float = 0.1) -> Tensor:
        """Distances (N, 4) of ``gt_bboxes`` from the centres of ``anchors``."""
        return super().encode(centers(anchors), gt_bboxes, max_dis, eps)

    def decode(self, anchors: Tensor, pred_bboxes: Tensor, max_shape=None) -> Tensor:
        """Boxes (N, 4) at distances ``pred_bboxes`` from the centres of ``anchors``."""
        return super().decode(centers(anchors), pred_bboxes, max_shape)


class DistributionMixin:
    """Turns the logits of the regression layer into distances wherever the stock head expects box
    predictions.

    Args:
        reg_max (int): Largest distance, in units of the stride; there are ``reg_max + 1`` bins.
            Defaults to 16.
    """

    # Name of the stock head's last regression layer.
    regression_layer: str

    def __init__(self, *args, reg_max: int = 16, **kwargs) -> None:
        if reg_max < 1:
            raise ValueError(f'reg_max must be at least 1, got {reg_max}')
        self.reg_max = reg_max
        super().__init__(*args, **kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        stock: nn.Conv2d = getattr(self, self.regression_layer)
        wide = nn.Conv2d(
            stock.in_channels,
            stock.out_channels * (self.reg_max + 1),
            stock.kernel_size,
            stock.stride,
            stock.padding,
        )
        setattr(self, self.regression_layer, wide)
        self.integral = Integral(self.reg_max)

    def distances(self, bbox_preds: List[Tensor]) -> List[Tensor]:
        """Expected distances in pixels, (B, A*4, H, W), of logits (B, A*4*(reg_max+1), H, W).

        In half precision, where they are up to ``reg_max`` times the stride, they would be off by pixels.
        """
        result = []
        for logits, stride in zip(bbox_preds, self.prior_generator.strides):
            batch, _, height, width = logits.shape
            with torch.autocast(logits.device.type, enabled=False):
                expected = self.integral(
                    at_least_float32(logits).permute(0, 2, 3, 1)
                )  # (B*H*W*A, 4)
            expected = expected.reshape(batch, height, width, -1).permute(0, 3, 1, 2)
            result.append(expected * (stride[0] if isinstance(stride, (tuple, list)) else stride))
        return result

    def loss_by_feat(
        self, cls_scores: List[Tensor], bbox_preds: List[Tensor], *args, **kwargs
    ) -> dict:
        """The stock losses, on the expected boxes."""
        return super().loss_by_feat(cls_scores, self.distances(bbox_preds), *args, **kwargs)

    def predict_by_feat(
        self, cls_scores: List[Tensor], bbox_preds: List[Tensor], *args, **kwargs
    ) -> list:
        """The stock predictions, from the expected boxes."""
        return super().predict_by_feat(cls_scores, self.distances(bbox_preds), *args, **kwargs)


@MODELS.register_module()
class ATSSDistHead(DistributionMixin, ATSSHead):
    """ATSS head with distributions for box edges.

    Takes the arguments of the stock ``ATSSHead`` and ``reg_max``; the box coder is fixed.
    """

    regression_layer = 'atss_reg'

    def __init__(
        self, *args, bbox_coder: dict = dict(type='mmextra.CenterDistanceBBoxCoder'), **kwargs
    ) -> None:
        super().__init__(*args, bbox_coder=bbox_coder, **kwargs)


@MODELS.register_module()
class RetinaDistHead(DistributionMixin, RetinaHead):
    """RetinaNet head with distributions for box edges.

    Takes the arguments of the stock ``RetinaHead`` and ``reg_max``. The box loss is computed on
    decoded boxes, GIoU by default.
    """

    regression_layer = 'retina_reg'

    def __init__(
        self,
        *args,
        bbox_coder: dict = dict(type='mmextra.CenterDistanceBBoxCoder'),
        loss_bbox: dict = dict(type='GIoULoss', loss_weight=2.0),
        **kwargs,
    ) -> None:
        kwargs.setdefault('reg_decoded_bbox', True)
        super().__init__(*args, bbox_coder=bbox_coder, loss_bbox=loss_bbox, **kwargs)


@MODELS.register_module()
class FCOSDistHead(DistributionMixin, FCOSHead):
    """FCOS head with distributions for box edges.

    Takes the arguments of the stock ``FCOSHead`` and ``reg_max``, but not ``norm_on_bbox``: the
    distributions are in units of the stride anyway.
    """

    regression_layer = 'conv_reg'

    def __init__(self, *args, **kwargs) -> None:
        if kwargs.get('norm_on_bbox'):
            raise ValueError(
                'norm_on_bbox=True does not go with FCOSDistHead, whose distributions are in units of the '
                'stride already: remove it'
            )
        super().__init__(*args, **kwargs)

    def forward_single(self, x: Tensor, scale: nn.Module, stride: int) -> tuple:
        """Class scores (B, C, H, W), distribution logits (B, 4*(reg_max+1), H, W) and centerness (B, 1, H, W)."""
        cls_score, bbox_pred, cls_feat, reg_feat = super(FCOSHead, self).forward_single(x)
        centerness = self.conv_centerness(reg_feat if self.centerness_on_reg else cls_feat)
        return cls_score, scale(bbox_pred).float(), centerness
