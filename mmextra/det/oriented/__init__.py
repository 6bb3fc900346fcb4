"""Oriented boxes for detectors: what every oriented method of this wing is built from.

Registered here: ``OrientedOverlaps2D``, ``OrientedDeltaCoder``; the costs ``OrientedL1Cost``,
``OrientedIoUCost``, ``OrientedGDCost`` and the losses ``OrientedIoULoss``, ``OrientedGDLoss``; the
DOTA data sets with their transforms and their metric; a visualizer that draws polygons; test-time
augmentation; and a dense head with distributions. The box type itself is
:class:`mmextra.structures.oriented_boxes.OrientedBoxes`.
"""

from mmextra.det.oriented.coder import OrientedDeltaCoder
from mmextra.det.oriented.costs import (
    OrientedGDCost,
    OrientedIoUCost,
    OrientedL1Cost,
    OrientedOverlaps2D,
)
from mmextra.det.oriented.dota import (
    OrientedDOTADataset,
    OrientedDOTADatasetV2,
    OrientedDOTADatasetV15,
)
from mmextra.det.oriented.head import OrientedGFLHead
from mmextra.det.oriented.losses import OrientedGDLoss, OrientedIoULoss
from mmextra.det.oriented.metric import OrientedDOTAMetric, oriented_map
from mmextra.det.oriented.transforms import OrientedRandomRotate, PolygonToOriented
from mmextra.det.oriented.tta import OrientedTTAModel
from mmextra.det.oriented.visualizer import OrientedLocalVisualizer

__all__ = [
    'OrientedDOTADataset',
    'OrientedDOTADatasetV15',
    'OrientedDOTADatasetV2',
    'OrientedDOTAMetric',
    'OrientedLocalVisualizer',
    'OrientedRandomRotate',
    'PolygonToOriented',
    'oriented_map',
    'OrientedDeltaCoder',
    'OrientedGDCost',
    'OrientedGDLoss',
    'OrientedGFLHead',
    'OrientedIoUCost',
    'OrientedIoULoss',
    'OrientedL1Cost',
    'OrientedOverlaps2D',
    'OrientedTTAModel',
]
