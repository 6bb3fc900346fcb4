"""Mixing tokens, the loss on class and patch tokens, and the head that joins them."""

from typing import List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from mmpretrain.models.heads import ClsHead
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mmextra.registry import MODELS

# (row 1, column 1, row 2, column 2) on the token grid, the second pair exclusive.
Box = Tuple[int, ...]
# The host's FeatureExtractor takes features apart for each image, down to tensors, and a number it cannot.
NO_BOX: Box = ()


def box_area(box: Sequence[int]) -> int:
    """Number of tokens in a box, which may have none and may be empty."""
    r1, c1, r2, c2 = box if len(box) else (0, 0, 0, 0)
    return max(int(r2) - int(r1), 0) * max(int(c2) - int(c1), 0)


def swap_box(x: Tensor, box: Box) -> Tensor:
    """Inside a box, take what the sample at the mirrored place of the batch has there.

    Args:
        x (Tensor): Tokens on their grid, (B, H, W, C).
        box (tuple[int]): Rows and columns ``(r1, c1, r2, c2)``. A box without tokens, or ``()``, leaves ``x`` as it is.

    Returns:
        Tensor: (B, H, W, C). Applying the same swap twice gives ``x`` back.
    """
    if not box_area(box):
        return x
    r1, c1, r2, c2 = box
    swapped = x.clone()
    swapped[:, r1:r2, c1:c2] = x[:, r1:r2, c1:c2].flip(0)
    return swapped


@MODELS.register_module()
class MixToken(nn.Module):
    """CutMix on the token grid, after the stem (section 3.3).

    A backbone calls it on its feature map while training; :class:`TokenLabelClsHead` undoes it on
    the logits of the patch tokens, so only the target of the class token has to be mixed.

    Args:
        alpha (float): Both parameters of the beta distribution that lambda comes from. The box
            covers 1 - lambda of the grid before it is clipped. Defaults to 1.

    Raises:
        ValueError: If ``alpha`` is not positive.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        if alpha <= 0:
            raise ValueError(
                f'alpha must be positive, got {alpha}; leave mix_token off to mix nothing'
            )
        self.alpha = alpha

    def sample_box(self, height: int, width: int) -> Box:
        """Draw a box on a grid of ``height`` x ``width`` tokens, from numpy's random state."""
        side = np.sqrt(1 - np.random.beta(self.alpha, self.alpha))
        box = []
        for length in (height, width):
            cut, centre = int(length * side), np.random.randint(length)
            box.append((max(centre - cut // 2, 0), min(centre + cut // 2, length)))
        (r1, r2), (c1, c2) = box
        return r1, c1, r2, c2

    def mix(self, x: Tensor, scale: int = 1) -> Tuple[Tensor, Box]:
        """Mix a batch with its own reverse.

        Args:
            x (Tensor): Feature map, (B, C, H, W).
            scale (int): How much coarser than ``x`` the grid is on which the box is drawn, for
                backbones that reduce the resolution later. Defaults to 1.

        Returns:
            tuple: The mixed map (B, C, H, W), and the box on the grid of H/scale x W/scale.
        """
        box = self.sample_box(x.shape[2] // scale, x.shape[3] // scale)
        mixed = swap_box(x.permute(0, 2, 3, 1), tuple(scale * side for side in box))
        return mixed.permute(0, 3, 1, 2), box

    @staticmethod
    def unmix(scores: Tensor, box: Box) -> Tensor:
        """Give the scores of the patch tokens, (B, H, W, K), back to their own images."""
        return swap_box(scores, box)


@MODELS.register_module()
class SoftTargetCrossEntropy(nn.Module):
    r"""Cross-entropy with soft targets, :math:`-\sum_k t_k \log p_k`, averaged over the samples.

    Targets need not sum to one; smoothed token labels sum to ``1 + smoothing / K``.

    Args:
        loss_weight (float): Defaults to 1.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(
        self, cls_score: Tensor, target: Tensor, avg_factor: Optional[int] = None
    ) -> Tensor:
        """Compute the loss.

        Args:
            cls_score (Tensor): Logits, (B, K).
            target (Tensor): Soft targets (B, K); class indices (B, ); or, for training with
                re-labelled images, ground truth and label of the crop (B, K, 2), of which the
                second counts.
            avg_factor (int, optional): What to divide the sum by. Defaults to B.

        Returns:
            Tensor: Scalar.
        """
        target = target[..., 1] if target.ndim == 3 else target
        if target.ndim == 2 and target.shape != cls_score.shape:
            raise ValueError(
                f'target has shape {tuple(target.shape)}, cls_score {tuple(cls_score.shape)}: '
                'num_classes of the head and of the data preprocessor differ'
            )
        losses = F.cross_entropy(cls_score, target, reduction='sum')
        return self.loss_weight * losses / (avg_factor or len(cls_score))


@MODELS.register_module()
class TokenLabelLoss(nn.Module):
    r"""Token labeling objective (section 3.2):

    .. math:: w_{cls}\,CE(x_{cls}, t_{cls}) + w_{dense}\,\frac{1}{N}\sum_i CE(x_i, t_i)

    With mixed tokens, the target of the class token is mixed by the share of tokens that stayed.

    Args:
        dense_weight (float): Weight of the patch tokens: 1 in LV-ViT, 0.5 in VOLO and Refiner.
            Defaults to 1.
        cls_weight (float): Weight of the class token. Defaults to 1.
        with_gt (bool): Blend the ground truth into the target of the class token, as VOLO's
            fine-tuning does: the annotator's label has weight 0.5 where both agree on the class,
            else 0.9. Defaults to False.
    """

    def __init__(
        self, dense_weight: float = 1.0, cls_weight: float = 1.0, with_gt: bool = False
    ) -> None:
        super().__init__()
        self.dense_weight = dense_weight
        self.cls_weight = cls_weight
        self.with_gt = with_gt
        self.cross_entropy = SoftTargetCrossEntropy()

    def forward(
        self,
        cls_score: Tensor,
        aux_score: Optional[Tensor],
        target: Tensor,
        box: Sequence[int] = NO_BOX,
    ) -> Tensor:
        """Compute the loss.

        Args:
            cls_score (Tensor): Logits of the class token, (B, K).
            aux_score (Tensor, optional): Logits of the patch tokens, un-mixed, (B, N, K). None
                where the head has no classifier of patch tokens.
            target (Tensor): (B, K, 2 + N): ground truth, label of the crop, labels of the tokens
                in row-major order. With (B, K) or (B, K, 2) all tokens have the image's label.
            box (Sequence[int]): Box of mixed tokens ``(r1, c1, r2, c2)``. Defaults to none.

        Returns:
            Tensor: Scalar.

        Raises:
            ValueError: If ``target`` has labels for another number of tokens.
        """
        cls_target = target if target.ndim == 2 else self.image_target(target)
        mixed = box_area(box)
        if mixed and aux_score is not None:
            kept = 1 - mixed / aux_score.shape[1]
            mixed_target = kept * cls_target + (1 - kept) * cls_target.flip(0)
        else:
            mixed_target = cls_target
        loss = self.cls_weight * self.cross_entropy(cls_score, mixed_target)
        if aux_score is None:
            return loss
        token_target = self.token_target(target, aux_score.shape[1])
        dense = self.cross_entropy(aux_score.flatten(0, 1), token_target.flatten(0, 1))
        return loss + self.dense_weight * dense

    def image_target(self, target: Tensor) -> Tensor:
        """Target of the class token before mixing, (B, K), from ``target`` (B, K, 2 + N)."""
        gt, label = target[..., 0], target[..., 1]
        if not self.with_gt:
            return label
        agree = (gt.argmax(1) == label.argmax(1))[:, None]
        ratio = 0.9 - 0.4 * agree.to(label)
        return ratio * label + (1 - ratio) * gt

    @staticmethod
    def token_target(target: Tensor, num_tokens: int) -> Tensor:
        """Targets of the patch tokens, (B, N, K)."""
        if target.ndim == 3 and target.shape[2] == 2:
            target = target[..., 1]
        if target.ndim == 2:
            return target[:, None].expand(-1, num_tokens, -1)
        if target.shape[2] != 2 + num_tokens:
            raise ValueError(
                f'the target has labels for {target.shape[2] - 2} tokens, the backbone gives '
                f'{num_tokens}: set label_size of TokenLabelDataPreprocessor to the side of the '
                'token grid'
            )
        return target[..., 2:].mT


@MODELS.register_module()
class TokenLabelClsHead(ClsHead):
    """Linear classifiers of the class token and of every patch token (section 3.2).

    Its input is what a backbone gives for ``out_type='dense'``: the last item is a list
    ``[patch_map (B, C, H, W), cls_token (B, C), box]``, where ``box`` says which tokens
    :class:`MixToken` has mixed (``()`` for none), followed by the attention maps if the backbone exposes any:
    ``[patch_map, cls_token, box, attn_maps]``. Without classifier of patch tokens, the class token
    alone (``out_type='cls_token'``) or a pooled map will do.

    The target is taken from the first of these that the data samples have: ``gt_token_score``
    (set by :class:`TokenLabelDataPreprocessor`), ``gt_score``, ``gt_label``.

    Args:
        num_classes (int): Number of classes K.
        in_channels (int): Channels C.
        loss (dict): Loss with the signature of :class:`TokenLabelLoss`.
            Defaults to ``dict(type='mmextra.TokenLabelLoss')``.
        with_aux (bool): Whether there is a classifier of patch tokens. Defaults to True.
        aux_test_weight (float): For inference, this times the highest logit of each class over
            all patch tokens is added to the logit of the class token. Defaults to 0.5.
        aux_losses (Sequence[dict]): Further losses, called with the list of attention maps that
            the backbone exposes in training. The result is logged under the ``loss_name`` of the
            loss, else as ``loss_aux``, with its index where the name is taken. Defaults to none.
        init_cfg (dict, optional): Defaults to a truncated normal distribution, std 0.02.

    Raises:
        ValueError: If ``num_classes`` is not positive, or the input does not fit (see above).
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        loss: dict = dict(type='mmextra.TokenLabelLoss'),
        with_aux: bool = True,
        aux_test_weight: float = 0.5,
        aux_losses: Sequence[dict] = (),
        init_cfg: Optional[dict] = dict(type='TruncNormal', layer='Linear', std=0.02),
    ) -> None:
        super().__init__(loss=loss, init_cfg=init_cfg)
        if num_classes <= 0:
            raise ValueError(f'num_classes must be positive, got {num_classes}')
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.aux_test_weight = aux_test_weight
        self.fc = nn.Linear(in_channels, num_classes)
        self.aux_fc = nn.Linear(in_channels, num_classes) if with_aux else None
        self.aux_losses = nn.ModuleList(MODELS.build(cfg) for cfg in aux_losses)

    def pre_logits(self, feats: tuple) -> Tensor:
        """The class token, (B, C)."""
        last = feats[-1]
        if isinstance(last, (list, tuple)):
            return last[1]
        if self.aux_fc is not None:
            raise ValueError(
                "the classifier of patch tokens needs a backbone with out_type='dense'; without "
                'patch tokens, set with_aux=False in TokenLabelClsHead'
            )
        return last

    def scores(self, feats: tuple) -> Tuple[Tensor, Optional[Tensor], Box]:
        """Logits of the class token (B, K) and of the patch tokens (B, N, K), un-mixed; the box."""
        cls_score = self.fc(self.pre_logits(feats))
        box = feats[-1][2] if isinstance(feats[-1], (list, tuple)) else NO_BOX
        if self.aux_fc is None:
            if box_area(box):
                raise ValueError('mix_token needs the classifier of patch tokens: with_aux=True')
            return cls_score, None, box
        aux_score = self.aux_fc(feats[-1][0].permute(0, 2, 3, 1))  # (B, H, W, K)
        return cls_score, MixToken.unmix(aux_score, box).flatten(1, 2), box

    def forward(self, feats: tuple) -> Tensor:
        """Logits for inference, (B, K)."""
        cls_score, aux_score, _ = self.scores(feats)
        if aux_score is None:
            return cls_score
        return cls_score + self.aux_test_weight * aux_score.amax(1)

    def loss(self, feats: tuple, data_samples: List[DataSample], **kwargs) -> dict:
        """Compute the losses.

        Args:
            feats (tuple): Output of the backbone.
            data_samples (list[DataSample]): One for each image.

        Returns:
            dict[str, Tensor]: ``loss``, and one entry for each of ``aux_losses``.

        Raises:
            ValueError: If there are ``aux_losses`` and the backbone exposes no attention maps.
        """
        cls_score, aux_score, box = self.scores(feats)
        target = self.get_target(data_samples).to(cls_score.device)
        losses = dict(loss=self.loss_module(cls_score, aux_score, target, box))
        if self.aux_losses:
            if not isinstance(feats[-1], (list, tuple)) or len(feats[-1]) < 4:
                raise ValueError(
                    'aux_losses need attention maps: switch them on in the backbone, for example '
                    'cos_reg_maps of RefinerViT'
                )
            for i, module in enumerate(self.aux_losses):
                name = getattr(module, 'loss_name', 'loss_aux')
                losses[f'{name}{i}' if name in losses else name] = module(feats[-1][3])
        return losses

    def get_target(self, data_samples: List[DataSample]) -> Tensor:
        """Targets of the batch, (B, K, 2 + N) or (B, K)."""
        if 'gt_token_score' in data_samples[0]:
            # Stacked as rows of classes, which is how the loss reads them.
            return torch.stack([sample.gt_token_score.mT for sample in data_samples]).mT
        if 'gt_score' in data_samples[0]:
            return torch.stack([sample.gt_score for sample in data_samples])
        labels = torch.cat([sample.gt_label for sample in data_samples])
        return F.one_hot(labels, self.num_classes).float()
