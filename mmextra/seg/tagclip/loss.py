"""Losses of TagCLIP (arXiv 2304.07547, section 3.3): focal and dice on masks, focal on the trusty map."""

from typing import Dict, Optional

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from torch import Tensor, nn

from mmextra.ops.precision import at_least_float32
from mmextra.registry import MODELS


def binary_focal_loss(
    logits: Tensor, target: Tensor, valid: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss of binary masks, averaged over the valid pixels of each.

    Args:
        logits (Tensor): (B, C, H, W).
        target (Tensor): The same shape, boolean.
        valid (Tensor): (B, 1, H, W), boolean. The pixels that count.
        alpha (float): Weight of the positive pixels; that of the negative ones is ``1 - alpha``.
            Defaults to 0.25.
        gamma (float): Exponent of the modulating factor. Defaults to 2.

    Returns:
        Tensor: (B, C).
    """
    signed = torch.where(target, logits, -logits)  # sigmoid(signed) is p_t
    loss = -F.logsigmoid(signed) * torch.sigmoid(-signed) ** gamma
    loss = loss * torch.where(target, alpha, 1 - alpha) * valid
    return loss.sum((2, 3)) / valid.sum((2, 3)).clamp(min=1)


def dice_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Dice loss of binary masks with one added above and below.

    Args:
        logits, target (Tensor): (M, H, W), the target boolean.
        valid (Tensor): (M, H, W), boolean. The pixels that count.

    Returns:
        Tensor: (M,).
    """
    p = logits.sigmoid() * valid
    overlap = (p * target).sum((1, 2))
    return 1 - (2 * overlap + 1) / (p.sum((1, 2)) + target.sum((1, 2)) + 1)


@MODELS.register_module()
class TagCLIPLoss(nn.Module):
    """Mask and trusty losses, each a sum divided by the number of masks that are there.

    That number N counts pairs of an image and a class in it, averaged over the processes and at
    least 1. Pixels of label 255 are negatives of every class: background, not ignored.

    Args:
        mask_weight (float): Weight of the focal loss of the class masks. Defaults to 20.
        dice_weight (float): Weight of the dice loss, on masks of classes that are there.
            Defaults to 1.
        disc_weight (float): Weight of the focal loss of the trusty map. Defaults to 10.
        alpha (float): Weight of positive pixels in the focal losses. Defaults to 0.25.
        gamma (float): Exponent of the focal losses. Defaults to 2.
    """

    def __init__(
        self,
        mask_weight: float = 20.0,
        dice_weight: float = 1.0,
        disc_weight: float = 10.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.disc_weight = disc_weight
        self.alpha = alpha
        self.gamma = gamma

    def forward(
        self,
        masks: Tensor,
        label: Tensor,
        trusty: Optional[Tensor] = None,
        trusty_target: Optional[Tensor] = None,
        valid: Optional[Tensor] = None,
    ) -> Dict[str, Tensor]:
        """Compute the losses.

        Args:
            masks (Tensor): Mask logits, (B, C, H, W).
            label (Tensor): (B, H, W). Index of the mask, or anything beyond: no class at all.
            trusty (Tensor, optional): Trusty logits, (B, 1, H, W).
            trusty_target (Tensor, optional): (B, H, W), boolean. The pixels of novel classes.
            valid (Tensor, optional): (B, H, W), boolean. The pixels that count. Defaults to all.

        Returns:
            dict: ``loss_mask``, ``loss_dice`` and, where there are trusty logits, ``loss_disc``.
        """
        masks = at_least_float32(masks)
        valid = torch.ones_like(label, dtype=torch.bool) if valid is None else valid
        classes = torch.arange(masks.shape[1], device=label.device).view(-1, 1, 1)
        target = (label[:, None] == classes) & valid[:, None]  # (B, C, H, W)
        there = target.flatten(2).any(2)  # (B, C)
        count = there.sum().to(masks.dtype)
        all_reduce(count, 'mean')
        count = count.clamp(min=1)

        focal = binary_focal_loss(masks, target, valid[:, None], self.alpha, self.gamma)
        dice = dice_loss(masks[there], target[there], valid[there.nonzero()[:, 0]])
        losses = dict(
            loss_mask=self.mask_weight * focal.sum() / count,
            loss_dice=self.dice_weight * dice.sum() / count,
        )
        if trusty is not None:
            novel = (trusty_target & valid)[:, None]
            trusty = trusty.to(masks.dtype)
            focal = binary_focal_loss(trusty, novel, valid[:, None], self.alpha, self.gamma)
            losses['loss_disc'] = self.disc_weight * focal.sum() / count
        return losses
