"""All Tokens Matter: Token Labeling for Training Better Vision Transformers. arXiv 2104.10858.

Every patch token gets its own soft target, cut out of a dense score map that an annotator model
made once per training image; the class token gets the image-level target of the same crop.

Registered here:

- data: ``LoadTokenLabel``, ``TokenLabelRandomFlip``, ``TokenLabelRandAugment``,
  ``TokenLabelRandomResizedCrop`` and ``TokenLabelDataPreprocessor``;
- training any backbone that gives patch tokens: ``MixToken``, ``TokenLabelClsHead``,
  ``TokenLabelLoss``, ``SoftTargetCrossEntropy``; ``TokenAccuracyHook`` measures the patch tokens;
- the paper's own backbone ``LVViT``, and ``LVViTPyramid``, its neck for segmentation.
"""

from .accuracy import TokenAccuracyHook, token_hits
from .head import MixToken, SoftTargetCrossEntropy, TokenLabelClsHead, TokenLabelLoss, swap_box
from .lvvit import LVViT, LVViTAttention, LVViTBlock, LVViTPyramid
from .targets import (
    TokenLabelDataPreprocessor,
    dense_scores,
    one_hot_target,
    token_label_target,
    top_classes,
)
from .transforms import (
    LoadTokenLabel,
    TokenLabelRandAugment,
    TokenLabelRandomFlip,
    TokenLabelRandomResizedCrop,
    warp_label,
)

__all__ = [
    'LVViT',
    'LVViTAttention',
    'LVViTBlock',
    'LVViTPyramid',
    'LoadTokenLabel',
    'MixToken',
    'SoftTargetCrossEntropy',
    'TokenAccuracyHook',
    'TokenLabelClsHead',
    'TokenLabelDataPreprocessor',
    'TokenLabelLoss',
    'TokenLabelRandAugment',
    'TokenLabelRandomFlip',
    'TokenLabelRandomResizedCrop',
    'dense_scores',
    'one_hot_target',
    'swap_box',
    'token_hits',
    'token_label_target',
    'top_classes',
    'warp_label',
]
