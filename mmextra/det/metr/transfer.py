"""Hands what METR has learned to stock detectors (10).

Language-aware Multiple Datasets Detection Pretraining for DETRs (arXiv 2304.03580).
"""

import re
from typing import Dict

from torch import Tensor

# METR's own, and the class branches: a single logit, which starts anew with the prior of 0.01.
OWN = r'label_spaces\.|cem\.|token_bias$|bbox_head\.cls_branches\.'
# What a target has not; all else bears the names of the stock detector.
LEFT_OUT = {
    'dino': OWN,
    'deformable-detr': OWN + r'|query_embedding\.|decoder\.(ref_point_head|norm)\.',
}


def stock_weights(weights: Dict[str, Tensor], target: str = 'dino') -> Dict[str, Tensor]:
    """The weights of a METR that a stock detector takes over.

    Args:
        weights (dict): State dict of a METR.
        target (str): ``'dino'``, or ``'deformable-detr'``: two-stage with box refinement. Defaults to
            ``'dino'``.

    Returns:
        dict: Backbone, neck, encoder, decoder, box branches and level embeddings.

    Raises:
        ValueError: If the target is unknown, or the weights are not those of a METR.
    """
    if target not in LEFT_OUT:
        raise ValueError(f'target must be one of {", ".join(LEFT_OUT)}, found {target!r}')
    if 'token_bias' not in weights:
        raise ValueError('these are not the weights of a METR: they hold no `token_bias`')
    return {k: v for k, v in weights.items() if not re.match(LEFT_OUT[target], k)}
