"""Which categories may be in an image: METR's category extraction module (CEM) and its loss.

Language-aware Multiple Datasets Detection Pretraining for DETRs (arXiv 2304.03580). Registered here:
``AsymmetricMultiLabelLoss`` and ``CategoryExtractionModule``.
"""

from typing import Optional

import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import FFN
from mmdet.utils import reduce_mean
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmextra.ops.precision import at_least_float32
from mmextra.registry import MODELS


@MODELS.register_module()
class AsymmetricMultiLabelLoss(nn.Module):
    r"""Asymmetric loss of independent yes/no questions.

    .. math::
        -\left[y\,(1-p)^{\gamma_+}\ln p + (1-y)\,p_m^{\gamma_-}\ln(1-p_m)\right],
        \qquad p_m = \max(p - m, 0)

    Args:
        gamma_pos (float): :math:`\gamma_+`. Defaults to 0.
        gamma_neg (float): :math:`\gamma_-`. Defaults to 4.
        margin (float): :math:`m`, a probability below which a negative costs nothing. Defaults to
            0.05.
        loss_weight (float): Defaults to 1.
    """

    def __init__(
        self,
        gamma_pos: float = 0.0,
        gamma_neg: float = 4.0,
        margin: float = 0.05,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= margin < 1:
            raise ValueError(f'margin must be in [0, 1), found {margin}')
        self.gamma_pos, self.gamma_neg = gamma_pos, gamma_neg
        self.margin, self.loss_weight = margin, loss_weight

    def forward(
        self, pred: Tensor, target: Tensor, valid: Optional[Tensor] = None, avg_factor: float = 1.0
    ) -> Tensor:
        """Sum of the loss over all questions, over ``avg_factor``.

        Args:
            pred (Tensor): Logits, of any shape.
            target (Tensor): 1 for yes and 0 for no, of that shape.
            valid (Tensor, optional): False where there is no question, of that shape. Defaults to
                None.
            avg_factor (float | Tensor): Defaults to 1.
        """
        target = target.to(pred.dtype)
        rejected = (pred.neg().sigmoid() + self.margin).clamp(max=1)  # 1 - p_m
        positive = pred.neg().sigmoid() ** self.gamma_pos * F.logsigmoid(pred)
        negative = (1 - rejected) ** self.gamma_neg * rejected.log()
        loss = -(target * positive + (1 - target) * negative)
        if valid is not None:
            loss = loss.masked_fill(~valid, 0)
        return self.loss_weight * loss.sum() / avg_factor


class CategoryExtractionLayer(BaseModule):
    """Cross-attention and FFN, normalised after each; categories do not see each other.

    Args:
        embed_dims (int): Width.
        num_heads (int): Attention heads.
        feedforward_channels (int): Hidden width of the FFN.
    """

    def __init__(self, embed_dims: int, num_heads: int, feedforward_channels: int) -> None:
        super().__init__()
        self.cross_attn = nn.MultiheadAttention(embed_dims, num_heads, batch_first=True)
        self.ffn = FFN(embed_dims, feedforward_channels)
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dims) for _ in range(2))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Optional[Tensor]) -> Tensor:
        """Categories (B, K, C) look at tokens (B, T, C)."""
        seen, _ = self.cross_attn(query, key, value, key_padding_mask=mask, need_weights=False)
        return self.norms[1](self.ffn(self.norms[0](query + seen)))


@MODELS.register_module()
class CategoryExtractionModule(BaseModule):
    """Says for each category of an image's label space whether the image holds it.

    The cost is linear in the number of categories.

    Args:
        num_layers (int): Defaults to 2.
        embed_dims (int): Defaults to 256.
        num_heads (int): Defaults to 8.
        feedforward_channels (int): Defaults to 1024.
        loss (dict): Defaults to the asymmetric loss with gamma 0 and 4 and margin 0.05.
        loss_weight (float): Defaults to 1.
    """

    def __init__(
        self,
        num_layers: int = 2,
        embed_dims: int = 256,
        num_heads: int = 8,
        feedforward_channels: int = 1024,
        loss: dict = dict(type='mmextra.AsymmetricMultiLabelLoss'),
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(f'embed_dims={embed_dims} is no multiple of num_heads={num_heads}')
        self.layers = nn.ModuleList(
            CategoryExtractionLayer(embed_dims, num_heads, feedforward_channels)
            for _ in range(num_layers)
        )
        self.score = nn.Linear(embed_dims, 1)
        self.loss_cem = MODELS.build(dict(loss, loss_weight=loss_weight))

    def init_weights(self) -> None:
        """Xavier, as the other transformer layers of DINO."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, text: Tensor, memory: Tensor, memory_pos: Tensor, memory_mask: Optional[Tensor] = None
    ) -> Tensor:
        """Score the categories.

        Args:
            text (Tensor): Category vectors, (B, K, C).
            memory (Tensor): Encoder tokens of the coarsest levels, (B, T, C).
            memory_pos (Tensor): Their positional encoding, (B, T, C).
            memory_mask (Tensor, optional): True where a token is padding, (B, T). Defaults to None.

        Returns:
            Tensor: Logits (B, K), at least of single precision.
        """
        for layer in self.layers:
            text = layer(text, memory + memory_pos, memory, memory_mask)
        return at_least_float32(self.score(text).squeeze(-1))

    def loss(self, logits: Tensor, present: Tensor, valid: Tensor) -> Tensor:
        """The loss, over the number of present (image, category) pairs of all processes' batches.

        Args:
            logits (Tensor): (B, K).
            present (Tensor): Whether the image has a box of the category, (B, K).
            valid (Tensor): False where a category is padding, (B, K).
        """
        pairs = reduce_mean(present.sum().to(logits)).clamp(min=1)
        return self.loss_cem(logits, present, valid, avg_factor=pairs)
