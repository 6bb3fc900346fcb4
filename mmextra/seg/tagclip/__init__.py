"""TagCLIP: a trusty token that tells novel classes from seen ones in zero-shot segmentation.

TagCLIP: Improving Discrimination Ability of Zero-Shot Semantic Segmentation (arXiv 2304.07547,
TPAMI 2024); the first version says "Open-Vocabulary" in place of "Zero-Shot". Registered here: the
segmentor ``TagCLIP``, its image encoder ``VPTCLIPVisionTransformer``, ``TagCLIPHead``,
``TagCLIPLoss`` and ``ZeroShotIoUMetric``; and, for a demonstration without CLIP, the data set
``ClassVectorGrids`` with ``ClassVectorBackbone`` and ``ClassVectorEncoder``.
"""

from mmextra.seg.tagclip.checkpoint import load_clip, official_layout, read_clip
from mmextra.seg.tagclip.head import MaskDecoderLayer, TagCLIPHead
from mmextra.seg.tagclip.loss import TagCLIPLoss, binary_focal_loss
from mmextra.seg.tagclip.metric import ZeroShotIoUMetric
from mmextra.seg.tagclip.segmentor import TagCLIP, class_split
from mmextra.seg.tagclip.synthetic import (
    ClassVectorBackbone,
    ClassVectorEncoder,
    ClassVectorGrids,
    class_vectors,
)
from mmextra.seg.tagclip.vit import VPTCLIPVisionTransformer

__all__ = [
    'ClassVectorBackbone',
    'ClassVectorEncoder',
    'ClassVectorGrids',
    'MaskDecoderLayer',
    'TagCLIP',
    'TagCLIPHead',
    'TagCLIPLoss',
    'VPTCLIPVisionTransformer',
    'ZeroShotIoUMetric',
    'binary_focal_loss',
    'class_split',
    'class_vectors',
    'load_clip',
    'official_layout',
    'read_clip',
]
