"""Dual-stream Network for Visual Recognition. arXiv 2105.14734, NeurIPS 2021.

A pyramid backbone whose blocks run two streams side by side: half of the channels at the full
resolution of the stage, with depth-wise convolutions, and half at 1/32 of the image, with
self-attention. Attention across the two joins them in every block.

Registered here: the backbone ``DSNet``, and ``DSFPN``, a feature pyramid with such a block at every
level. ``DSBlock`` is public, for backbones and necks of one's own.

The neck is not imported here: it needs mmdet, which the backbone does not.
"""

from .backbone import DSBlock, DSNet

__all__ = ['DSBlock', 'DSNet']
