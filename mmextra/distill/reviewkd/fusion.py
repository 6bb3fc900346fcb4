"""The trainable half of ReviewKD, between the student's features and the teacher's, and its loss."""

from typing import List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.dist import get_world_size
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmextra.registry import MODELS

Size = Tuple[int, int]


def convolve(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Convolution and normalisation, also of a map with a single value per channel.

    Batch statistics of one value do not exist, and BatchNorm raises there: one image left over for
    the last batch, a pooled level. The running statistics serve then. Leaving the level out instead
    would leave its parameters without gradient on one process, and the others waiting for it.
    """
    conv, norm = layers
    x = conv(x)
    alone = not (isinstance(norm, nn.SyncBatchNorm) and get_world_size() > 1)
    if isinstance(norm, _BatchNorm) and alone and norm.training and x[:, 0].numel() == 1:
        statistics = (norm.running_mean, norm.running_var)
        return F.batch_norm(x, *statistics, norm.weight, norm.bias, training=False, eps=norm.eps)
    return norm(x)


class AttentionFusion(nn.Module):
    """Attention based fusion (ABF, Section 3.3, Figure 4a): one level of the review.

    Args:
        in_channels (int): Channels of the student's feature.
        mid_channels (int): Channels in which levels are fused.
        out_channels (int): Channels of the teacher's feature.
        fuse (bool): Whether there is a deeper level to fuse with.
        norm_cfg (dict): Normalisation after both convolutions.
    """

    def __init__(
        self, in_channels: int, mid_channels: int, out_channels: int, fuse: bool, norm_cfg: dict
    ) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(in_channels, mid_channels, 1, bias=False),
            build_norm_layer(norm_cfg, mid_channels)[1],
        )
        self.conv2 = nn.Sequential(
            nn.Conv2d(mid_channels, out_channels, 3, padding=1, bias=False),
            build_norm_layer(norm_cfg, out_channels)[1],
        )
        self.att_conv = None
        if fuse:
            self.att_conv = nn.Sequential(nn.Conv2d(2 * mid_channels, 2, 1), nn.Sigmoid())
        for layers in (self.conv1, self.conv2):
            nn.init.kaiming_uniform_(layers[0].weight, a=1)

    def forward(
        self, x: Tensor, residual: Optional[Tensor], size: Optional[Size]
    ) -> Tuple[Tensor, Tensor]:
        """Fuse one level.

        Args:
            x (Tensor): The student's feature, (B, C, H, W).
            residual (Tensor, optional): What the next deeper level passed on, (B, M, h, w).
            size (tuple, optional): Height and width of the teacher's feature, where it differs.

        Returns:
            tuple[Tensor, Tensor]: What is compared with the teacher, (B, D, h, w), and what is
            passed on to the next shallower level, (B, M, h, w), both of the teacher's size.
        """
        x = convolve(self.conv1, x)  # (B, M, H, W)
        if self.att_conv is not None:
            residual = F.interpolate(residual, x.shape[-2:], mode='nearest')
            attention = self.att_conv(torch.cat([x, residual], 1))  # (B, 2, H, W)
            x = x * attention[:, :1] + residual * attention[:, 1:]
        if size is not None and x.shape[-2:] != size:
            x = F.interpolate(x, size, mode='nearest')
        return convolve(self.conv2, x), x


@MODELS.register_module()
class ReviewFusion(nn.Module):
    """The chain of fusions that reviews deep features at every shallower level (Section 3.3).

    The state dict is the authors': ``abfs.0`` is the deepest level.

    Args:
        in_channels (Sequence[int]): Channels of the student's levels, shallow to deep.
        out_channels (Sequence[int]): Channels of the teacher's levels, shallow to deep.
        mid_channels (int, optional): Channels in which levels are fused. Defaults to None, those of
            the student's deepest level, at most 512.
        norm_cfg (dict): Normalisation after the convolutions. Use ``dict(type='GN', num_groups=32)``
            or ``dict(type='SyncBN')`` with one image a device. Defaults to ``dict(type='BN')``.

    Raises:
        ValueError: If student and teacher have different numbers of levels, or none.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: Sequence[int],
        mid_channels: Optional[int] = None,
        norm_cfg: dict = dict(type='BN'),
    ) -> None:
        super().__init__()
        check_levels(in_channels, out_channels)
        mid_channels = mid_channels or min(512, in_channels[-1])
        deepest_first = list(zip(in_channels, out_channels))[::-1]
        self.abfs = nn.ModuleList(
            AttentionFusion(own, mid_channels, other, fuse=level > 0, norm_cfg=norm_cfg)
            for level, (own, other) in enumerate(deepest_first)
        )

    def forward(
        self, features: Sequence[Tensor], sizes: Optional[Sequence[Size]] = None
    ) -> List[Tensor]:
        """Fuse a student's features.

        Args:
            features (Sequence[Tensor]): (B, C_i, H_i, W_i), shallow to deep.
            sizes (Sequence[tuple], optional): Height and width to give each level, after the fusion.
                Defaults to None, the student's own.

        Returns:
            list[Tensor]: (B, D_i, H_i, W_i), or of ``sizes``, shallow to deep.
        """
        sizes = sizes or [None] * len(features)
        fused, residual = [], None
        for fusion, x, size in zip(self.abfs, features[::-1], sizes[::-1]):
            y, residual = fusion(x, residual, size)
            fused.append(y)
        return fused[::-1]


@MODELS.register_module()
class SameLevelAdapters(nn.Module):
    """What ReviewKD is held against: a 1x1 convolution a level, and no review.

    Args:
        in_channels (Sequence[int]): Channels of the student's levels.
        out_channels (Sequence[int]): Channels of the teacher's levels.

    Raises:
        ValueError: If student and teacher have different numbers of levels, or none.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: Sequence[int]) -> None:
        super().__init__()
        check_levels(in_channels, out_channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(own, other, 1) for own, other in zip(in_channels, out_channels)
        )

    def forward(
        self, features: Sequence[Tensor], sizes: Optional[Sequence[Size]] = None
    ) -> List[Tensor]:
        """Adapt each level alone; arguments and result as of :meth:`ReviewFusion.forward`."""
        adapted = [conv(x) for conv, x in zip(self.convs, features)]
        if sizes is None:
            return adapted
        return [F.interpolate(x, size, mode='nearest') for x, size in zip(adapted, sizes)]


def check_levels(in_channels: Sequence[int], out_channels: Sequence[int]) -> None:
    """Raise ``ValueError`` unless student and teacher have the same number of levels, at least one."""
    if not in_channels or len(in_channels) != len(out_channels):
        raise ValueError(
            f'student and teacher must have the same number of levels: the student has '
            f'{len(in_channels)} (channels {list(in_channels)}), the teacher {len(out_channels)} '
            f'(channels {list(out_channels)}). Name as many `student_layers` as `teacher_layers`, or '
            'give the necks the same `num_outs`; in_channels are those of the student, out_channels the '
            "teacher's."
        )


@MODELS.register_module()
class HierarchicalContextLoss(nn.Module):
    """Hierarchical context loss (HCL, Section 3.3, Figure 4b): MSE of features and of their averages.

    Each level's loss is the weighted mean of its MSE, with weight 1, and of the MSEs of both features
    average-pooled to k x k, with weights 1/2, 1/4, ... A grid that is no smaller than the feature's
    height is left out, and takes no weight.

    Args:
        pool_sizes (Sequence[int]): The grids k, finest first. Defaults to (4, 2, 1).
    """

    def __init__(self, pool_sizes: Sequence[int] = (4, 2, 1)) -> None:
        super().__init__()
        self.pool_sizes = tuple(pool_sizes)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> List[Tensor]:
        """Loss of each level, to be summed.

        Args:
            student, teacher (Sequence[Tensor]): Features of equal shapes, (B, D_i, H_i, W_i).

        Raises:
            ValueError: If the shapes of a level differ.
        """
        shapes = [[tuple(x.shape) for x in features] for features in (student, teacher)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f'features must have equal shapes: student {shapes[0]}, teacher {shapes[1]}'
            )
        return [self._level(x, y) for x, y in zip(student, teacher)]

    def _level(self, student: Tensor, teacher: Tensor) -> Tensor:
        # Pooling is linear: the difference of the averages is the average of the difference.
        difference = student - teacher
        loss, total, weight = difference.square().mean(), 1.0, 1.0
        for size in self.pool_sizes:
            if size < difference.shape[-2]:
                weight /= 2
                pooled = F.adaptive_avg_pool2d(difference, size)
                loss = loss + weight * pooled.square().mean()
                total += weight
        return loss / total
