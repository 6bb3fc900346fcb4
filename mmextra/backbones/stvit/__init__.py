"""Making Vision Transformers Efficient from A Token Sparsification View. arXiv 2303.08685, CVPR 2023.

A few semantic tokens, cluster centres that are found by pooling and cross-attention, take the place of the image tokens
in the later layers (STViT). With a recovery layer, the "dumbbell unit", a dense map comes out again, so that detectors
and segmentors can use the backbone (STViT-R).

Registered here: ``STViT`` (on DeiT) and ``SemanticPooling`` in ``deit``; ``STViTRSwin`` (STViT-R on Swin) and
``STViTSwin`` (STViT on Swin) in ``swin``; ``SemanticBlock``, ``SemanticAttentionBlock`` and ``SemanticRecoveryBlock``
in ``blocks``.
"""

from .blocks import SemanticAttentionBlock, SemanticBlock, SemanticRecoveryBlock
from .deit import SemanticPooling, STViT
from .swin import STViTRSwin, STViTSwin

__all__ = [
    'SemanticAttentionBlock',
    'SemanticBlock',
    'SemanticPooling',
    'SemanticRecoveryBlock',
    'STViT',
    'STViTRSwin',
    'STViTSwin',
]
