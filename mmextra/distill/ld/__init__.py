"""LD: localization distillation for dense detectors.

Localization Distillation for Dense Object Detection (arXiv 2102.12252) and its journal extension
Localization Distillation for Object Detection (arXiv 2204.05957). Registered here: the hook
``LocalizationDistillationHook``, the heads ``ATSSDistHead``, ``FCOSDistHead`` and
``RetinaDistHead`` (stock GFL heads need none), and the box coder they share.
"""

from mmextra.distill.ld.heads import (
    ATSSDistHead,
    CenterDistanceBBoxCoder,
    FCOSDistHead,
    RetinaDistHead,
)
from mmextra.distill.ld.hook import LocalizationDistillationHook, ld_layout
from mmextra.distill.ld.regions import imitation_region, vlr_weights

__all__ = [
    'ATSSDistHead',
    'CenterDistanceBBoxCoder',
    'FCOSDistHead',
    'LocalizationDistillationHook',
    'RetinaDistHead',
    'imitation_region',
    'ld_layout',
    'vlr_weights',
]
