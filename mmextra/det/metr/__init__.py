"""METR: joint training of a DETR on data sets with different label spaces.

Language-aware Multiple Datasets Detection Pretraining for DETRs (arXiv 2304.03580). Registered here:
the detector ``METR`` (and ``AnyWidthDINO`` to compare it with), its parts ``CategoryExtractionModule``, ``METRHead``,
``AsymmetricMultiLabelLoss`` and ``GroupHungarianAssigner``; for the data ``AttachLabelSpace``,
``SizePowerSampler`` and ``LabelSpaceCheckHook``; for the evaluation ``LabelSpaceEvaluator`` and
``CategoryExtractionMetric``.
"""

from mmextra.det.metr.assigner import GroupHungarianAssigner
from mmextra.det.metr.cem import AsymmetricMultiLabelLoss, CategoryExtractionModule
from mmextra.det.metr.data import AttachLabelSpace, LabelSpaceCheckHook, SizePowerSampler
from mmextra.det.metr.detector import METR, AnyWidthDINO
from mmextra.det.metr.embeddings import embed_names, resolve_label_space
from mmextra.det.metr.evaluation import CategoryExtractionMetric, LabelSpaceEvaluator
from mmextra.det.metr.head import METRHead
from mmextra.det.metr.transfer import stock_weights

__all__ = [
    'METR',
    'AnyWidthDINO',
    'AsymmetricMultiLabelLoss',
    'AttachLabelSpace',
    'CategoryExtractionMetric',
    'CategoryExtractionModule',
    'GroupHungarianAssigner',
    'LabelSpaceCheckHook',
    'LabelSpaceEvaluator',
    'METRHead',
    'SizePowerSampler',
    'embed_names',
    'resolve_label_space',
    'stock_weights',
]
