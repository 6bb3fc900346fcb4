"""DecoupleNet: unsupervised domain adaptation for semantic segmentation.

DecoupleNet: Decoupled Network for Domain Adaptive Semantic Segmentation (arXiv 2207.09988). Registered here:

- data: ``DomainPairDataset`` with ``DomainPairSampler`` and ``DomainPairDataPreprocessor``, which take any two
  data sets of mmseg; ``TrackedRandomSizedCrop``, ``LoadSoftLabel``, ``TorchColorJitter``; ``PrefixSegDataset``
  and ``DrawnDomains`` for demonstrations;
- network: ``ASPPSumHead``, ``FCDiscriminator``;
- training: ``DecoupleNet`` (phase 1), ``DecoupleSelfTraining`` (phase 2), ``MultiOptimWrapperConstructor``,
  ``StepwiseDataParallel``;
- metrics: ``SoftLabelDumper``, which writes what phase 2 starts from, and ``ClassIoUMetric``.
"""

from mmextra.seg.decouplenet.data import (
    DomainPairDataPreprocessor,
    DomainPairDataset,
    DomainPairSampler,
    PrefixSegDataset,
)
from mmextra.seg.decouplenet.drawn_domains import DrawnDomains
from mmextra.seg.decouplenet.metrics import ClassIoUMetric, SoftLabelDumper
from mmextra.seg.decouplenet.networks import ASPPSumHead, FCDiscriminator, decouplenet_layout
from mmextra.seg.decouplenet.optim import MultiOptimWrapperConstructor, StepwiseDataParallel
from mmextra.seg.decouplenet.segmentors import DecoupleNet, DecoupleSelfTraining
from mmextra.seg.decouplenet.transforms import (
    LoadSoftLabel,
    TorchColorJitter,
    TrackedRandomSizedCrop,
)

__all__ = [
    'ASPPSumHead',
    'ClassIoUMetric',
    'DecoupleNet',
    'DecoupleSelfTraining',
    'DomainPairDataPreprocessor',
    'DomainPairDataset',
    'DomainPairSampler',
    'DrawnDomains',
    'FCDiscriminator',
    'LoadSoftLabel',
    'MultiOptimWrapperConstructor',
    'PrefixSegDataset',
    'SoftLabelDumper',
    'StepwiseDataParallel',
    'TorchColorJitter',
    'TrackedRandomSizedCrop',
    'decouplenet_layout',
]
