"""Confidence thresholds, pseudo labels and the geometry of online self-training."""

from typing import Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from torch import Tensor, nn

from mmextra.ops.precision import at_least_float32


def keep_threshold(values: Tensor, keep: float) -> Tensor:
    """The confidence that the most confident part of the values reaches: entry ``int(keep * n)``, from the top.

    Args:
        values (Tensor): (n,), n > 0.
        keep (float): The part, in (0, 1].

    Returns:
        Tensor: A scalar.
    """
    rank = min(int(keep * len(values)), len(values) - 1)
    return values.kthvalue(len(values) - rank).values


def check_keep(keep: float) -> float:
    """Return ``keep``, or raise a ``ValueError`` if it is no part of a whole."""
    if not 0 < keep <= 1:
        raise ValueError(f'keep must lie in (0, 1], the part of the pixels that passes; got {keep}')
    return keep


def confident_labels(
    confidence: Tensor, classes: Tensor, thresholds: Tensor, ignore_index: int
) -> Tensor:
    """The classes (B, H, W), with ``ignore_index`` where the confidence is below the class's threshold."""
    return classes.masked_fill(confidence < thresholds[classes], ignore_index)


def masked_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Cross entropy averaged over the labelled pixels; zero, with zero gradients, where there are none.

    Args:
        logits (Tensor): (B, C, H, W).
        labels (Tensor): (B, H, W), int64.
        ignore_index (int): Label of the pixels without one.
    """
    total = F.cross_entropy(
        at_least_float32(logits), labels, ignore_index=ignore_index, reduction='sum'
    )
    return total / (labels != ignore_index).sum().clamp(min=1)


class ConfidenceBank(nn.Module):
    """Class-wise thresholds from the latest confidences of each class.

    The banks are part of the checkpoint once they hold something, and are accepted there but not asked for.

    Args:
        num_classes (int): Number of classes.
        keep (float): Part of the bank that passes the threshold. Defaults to 0.8.
        capacity (int): Latest values that are kept for each class. Defaults to 100000.

    Attributes:
        thresholds (Tensor): (num_classes,). Zero, which lets everything pass, until a class is first seen.
    """

    def __init__(self, num_classes: int, keep: float = 0.8, capacity: int = 100000) -> None:
        super().__init__()
        self.keep = check_keep(keep)
        if capacity < 1:
            raise ValueError(
                f'bank must be the number of values kept for each class, got {capacity}'
            )
        self.capacity = capacity
        self.register_buffer('thresholds', torch.zeros(num_classes), persistent=False)
        self.values = [torch.zeros(0) for _ in range(num_classes)]

    @torch.no_grad()
    def update(self, confidence: Tensor, classes: Tensor) -> Tensor:
        """Add a batch, and return the thresholds, averaged over all processes.

        Args:
            confidence (Tensor): (n,).
            classes (Tensor): (n,), int64.

        Returns:
            Tensor: (num_classes,).
        """
        for c in classes.unique().tolist():
            values = torch.cat([self.values[c].to(confidence), confidence[classes == c]])
            self.thresholds[c] = keep_threshold(values, self.keep)
            # Cut after the threshold is taken, as the authors do.
            self.values[c] = values[-self.capacity :].clone()
        all_reduce(self.thresholds, 'mean')
        return self.thresholds

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        sizes = torch.tensor([len(values) for values in self.values])
        if sizes.any():
            device = self.thresholds.device
            destination[f'{prefix}sizes'] = sizes
            destination[f'{prefix}values'] = torch.cat([v.to(device) for v in self.values])
            destination[f'{prefix}thresholds'] = self.thresholds.detach().clone()

    def _load_from_state_dict(self, state, prefix, metadata, strict, missing, unexpected, errors):
        sizes = state.get(f'{prefix}sizes')
        if sizes is None:
            return
        if len(sizes) != len(self.values):
            errors.append(
                f'{prefix}: banks of {len(sizes)} classes in the checkpoint, {len(self.values)} in the model'
            )
            return
        self.values = [v.clone() for v in state[f'{prefix}values'].split(sizes.tolist())]
        self.thresholds.copy_(state[f'{prefix}thresholds'])


def axis_map(sizes: Sequence[int], start: int, length: int, flip: bool, like: Tensor) -> Tensor:
    """Resizing, cropping and flipping along one axis, as a matrix.

    Bilinear resizing is linear and separable, so any chain of resizes, the crop and the flip together are one
    matrix for each axis, and nothing is computed outside the crop.

    Args:
        sizes (Sequence[int]): Length of the axis before and after each resize (corners aligned).
        start, length (int): The crop, after the last resize.
        flip (bool): Whether the crop is mirrored.
        like (Tensor): Whose device and dtype the matrix has.

    Returns:
        Tensor: (sizes[0], length).
    """
    matrix = torch.eye(sizes[0], device=like.device, dtype=like.dtype)[None]
    for size in sizes[1:]:
        matrix = F.interpolate(matrix, size=size, mode='linear', align_corners=True)
    matrix = matrix[0, :, start : start + length]
    return matrix.flip(1) if flip else matrix


def follow_geometry(maps: Tensor, geometry: dict, via: Optional[Tuple[int, int]] = None) -> Tensor:
    """Bring maps of a whole image to where its augmented crop lies.

    Args:
        maps (Tensor): (C, h, w), of the whole image at any resolution.
        geometry (dict): What :class:`TrackedRandomSizedCrop` did to the image: ``size`` (height, width) that it
            was resized to, ``offset`` (y, x) and ``shape`` (height, width) of the crop, and ``flip``.
        via (tuple, optional): Size (height, width) that the maps take first. Defaults to None.

    Returns:
        Tensor: (C, height, width) of the crop, float32 or the maps' float64.
    """
    maps = at_least_float32(maps)
    rows, columns = (
        axis_map(
            (maps.shape[1 + axis], *((via[axis],) if via else ()), geometry['size'][axis]),
            geometry['offset'][axis],
            geometry['shape'][axis],
            geometry['flip'] and axis == 1,
            maps,
        )
        for axis in (0, 1)
    )
    with torch.autocast(maps.device.type, enabled=False):
        return rows.T @ (maps @ columns)
