"""O2DETR: end-to-end detection of oriented boxes.

Oriented Object Detection with Transformer (arXiv 2106.03146). Registered here: the encoder without
attention ``O2DETREncoder``, the detector ``O2DETR``, its head ``O2DETRHead`` and the cascaded head
``O2DETRRefineHead`` of F-O2DETR. Boxes, datasets, costs, losses and the metric are those of the oriented-box
layer, which other oriented detectors use too.
"""

from mmextra.det.o2detr.detector import O2DETR, O2DETRDecoder
from mmextra.det.o2detr.encoder import (
    DepthwiseSeparableConv,
    O2DETREncoder,
    O2DETREncoderLayer,
)
from mmextra.det.o2detr.head import O2DETRHead
from mmextra.det.o2detr.refine import O2DETRRefineHead, OrientedRoIExtractor

__all__ = [
    'DepthwiseSeparableConv',
    'O2DETR',
    'O2DETRDecoder',
    'O2DETREncoder',
    'O2DETREncoderLayer',
    'O2DETRHead',
    'O2DETRRefineHead',
    'OrientedRoIExtractor',
]
