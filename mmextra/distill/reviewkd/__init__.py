"""ReviewKD: a student's deep stages help its shallow ones to match the teacher.

Distilling Knowledge via Knowledge Review (arXiv 2104.09044). Registered here: the hook
``ReviewKDHook`` for stock detectors and classifiers; its parts ``ReviewFusion`` and
``HierarchicalContextLoss``; ``SameLevelAdapters``, the baseline without review; and
``CIFARResNet``, the classifiers of its CIFAR experiments.
"""

from mmextra.distill.reviewkd.fusion import (
    HierarchicalContextLoss,
    ReviewFusion,
    SameLevelAdapters,
)
from mmextra.distill.reviewkd.hook import ReviewKDHook
from mmextra.distill.reviewkd.networks import CIFARResNet, reviewkd_layout

__all__ = [
    'CIFARResNet',
    'HierarchicalContextLoss',
    'ReviewFusion',
    'ReviewKDHook',
    'SameLevelAdapters',
    'reviewkd_layout',
]
