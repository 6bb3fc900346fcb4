"""From label maps to dense targets, on the device; and from a classifier to label maps."""

from contextlib import contextmanager
from typing import Callable, Iterator, List

import numpy as np
import torch
from mmcv.ops import roi_align
from mmpretrain.models.utils import ClsDataPreprocessor
from torch import Tensor, nn

from mmextra.registry import MODELS

COORD_ORDERS = ('xy', 'published')


def one_hot_target(gt_label: Tensor, num_classes: int, smoothing: float = 0.1) -> Tensor:
    """Smoothed one-hot targets: ``s/K`` everywhere, ``1 - s`` more at the class.

    Args:
        gt_label (Tensor): Classes, (B, ).
        num_classes (int): Number of classes K.
        smoothing (float): s. Defaults to 0.1.

    Returns:
        Tensor: (B, K), float. Rows sum to 1.
    """
    off = smoothing / num_classes
    target = torch.full((len(gt_label), num_classes), off, device=gt_label.device)
    return target.scatter_(1, gt_label[:, None], 1 - smoothing + off)


def crop_boxes(crop: Tensor, height: int, width: int, coord_order: str) -> Tensor:
    """Crops of the image as boxes on the label map.

    Args:
        crop (Tensor): (top, left, height, width) as fractions of the image, (B, 4).
        height, width (int): Size of the label map.
        coord_order (str): See :func:`token_label_target`.

    Returns:
        Tensor: Index in the batch and x1, y1, x2, y2 of each box, (B, 5).
    """
    start, extent = crop[:, :2], crop[:, 2:]
    corners = torch.cat((start, start + extent), 1)  # top, left, bottom, right
    if coord_order == 'published':
        boxes = corners * width
    else:
        boxes = corners[:, [1, 0, 3, 2]] * corners.new_tensor([width, height, width, height])
    index = torch.arange(len(crop), device=crop.device, dtype=crop.dtype)
    return torch.cat((index[:, None], boxes - 0.5), 1)


def token_label_target(
    label: Tensor,
    crop: Tensor,
    gt_label: Tensor,
    num_classes: int,
    label_size: int = 14,
    smoothing: float = 0.1,
    coord_order: str = 'xy',
    lam: float = 1.0,
) -> Tensor:
    """Build the targets of the class token and of every patch token (section 3.1).

    The part of the map that lies under the crop is pooled by RoIAlign to the token grid and to
    one cell, and a softmax over all classes is taken; classes absent from a map have logit 0.
    Only the classes that occur are pooled, the others are filled in.

    Args:
        label (Tensor): Values and class ids of the best classes of each cell, (B, 2, k, H, W).
        crop (Tensor): (top, left, height, width) as fractions of the image, (B, 4).
        gt_label (Tensor): Ground-truth classes, (B, ).
        num_classes (int): Number of classes K.
        label_size (int): Side n of the token grid. With 1 there is a label of the image only.
            Defaults to 14.
        smoothing (float): Label smoothing s. Defaults to 0.1.
        coord_order (str): ``'xy'`` pools the part under the crop. ``'published'`` exchanges rows
            and columns of the crop, as the released models were trained; it needs square maps.
            Defaults to ``'xy'``.
        lam (float): Share of the sample itself where the batch is mixed with its own reverse.
            Defaults to 1.

    Returns:
        Tensor: (B, K, 2 + n * n), or (B, K, 2) for ``label_size=1``: ground truth, label of the
        crop, labels of the tokens in row-major order. The columns of labels sum to 1 + s/K.

    Raises:
        ValueError: If the map is not square although it must be.
    """
    batch, _, _, height, width = label.shape
    if coord_order == 'published' and height != width:
        raise ValueError(
            f"coord_order='published' needs square label maps, got {height} x {width}; "
            "use coord_order='xy'"
        )
    values, ids = label[:, 0].float(), label[:, 1].long()

    # Classes that occur in a map get its first slots, in ascending order.
    present = torch.zeros(batch, num_classes, dtype=torch.bool, device=label.device)
    present.scatter_(1, ids.flatten(1), True)
    num_slots = int(present.sum(1).max())
    slot = (present.cumsum(1) - 1).gather(1, ids.flatten(1)).view_as(ids)
    classes = (~present).to(torch.uint8).argsort(dim=1, stable=True)[:, :num_slots]  # (B, P)
    maps = values.new_zeros(batch, num_slots, height, width).scatter_(1, slot, values)

    rois = crop_boxes(crop.float(), height, width, coord_order)
    sizes = (1,) if label_size == 1 else (1, label_size)
    pooled = [roi_align(maps, rois, size, 1.0, 0, 'avg', False).flatten(2) for size in sizes]
    logits = torch.cat(pooled, 2).mT  # (B, 1 + n * n, P)

    # Softmax over K classes of which all but P have logit 0.
    peak = logits.amax(2, keepdim=True).clamp(min=0)
    exp, absent = (logits - peak).exp(), (-peak).exp()
    total = exp.sum(2, keepdim=True) + (num_classes - num_slots) * absent
    off = smoothing / num_classes
    on = 1 - smoothing + off
    target = values.new_empty(batch, 1 + logits.shape[1], num_classes)
    target[:, 0] = one_hot_target(gt_label, num_classes, smoothing)
    target[:, 1:] = absent / total * on + off
    target[:, 1:].scatter_(2, classes[:, None].expand_as(exp), exp / total * on + off)
    if lam < 1:
        target = lam * target + (1 - lam) * target.flip(0)
    return target.mT


@MODELS.register_module()
class TokenLabelDataPreprocessor(ClsDataPreprocessor):
    """Data preprocessor that turns the label maps of a batch into dense targets.

    Data samples with ``token_label`` and ``crop_coords`` (see ``LoadTokenLabel`` and
    ``TokenLabelRandomResizedCrop``) get ``gt_token_score``, (K, 2 + n * n), in training; those
    without get a smoothed one-hot ``gt_score``, (K, ).

    Args:
        num_classes (int): Number of classes K.
        label_size (int): Side n of the token grid. Defaults to 14.
        smoothing (float): Label smoothing. Defaults to 0.1.
        coord_order (str): ``'xy'`` or ``'published'``, see :func:`token_label_target`.
            Defaults to ``'xy'``.
        mixup_alpha (float): Mix images and targets with the batch in reverse, the share drawn from
            Beta(alpha, alpha). The published recipes leave it at 0, which is off. Defaults to 0.
        **kwargs: Those of ``ClsDataPreprocessor``.

    Raises:
        ValueError: If an option is out of range, if a class id is, if only a part of the samples
            has a label map, or if label maps meet the host's ``batch_augments``.
    """

    def __init__(
        self,
        num_classes: int,
        label_size: int = 14,
        smoothing: float = 0.1,
        coord_order: str = 'xy',
        mixup_alpha: float = 0.0,
        **kwargs,
    ) -> None:
        super().__init__(num_classes=num_classes, **kwargs)
        if coord_order not in COORD_ORDERS:
            raise ValueError(f'coord_order must be one of {COORD_ORDERS}, got {coord_order!r}')
        if label_size < 1:
            raise ValueError(f'label_size must be at least 1, got {label_size}')
        if not 0 <= smoothing < 1:
            raise ValueError(f'smoothing must lie in [0, 1), got {smoothing}')
        if mixup_alpha < 0:
            raise ValueError(f'mixup_alpha must not be negative, got {mixup_alpha}')
        self.label_size = label_size
        self.smoothing = smoothing
        self.coord_order = coord_order
        self.mixup_alpha = mixup_alpha

    def forward(self, data: dict, training: bool = False) -> dict:
        """Normalise the images and, in training, set the targets.

        Args:
            data (dict): ``inputs`` and ``data_samples`` from the data loader.
            training (bool): Defaults to False.

        Returns:
            dict: ``inputs`` (B, 3, H, W) and ``data_samples``.
        """
        samples = data.get('data_samples')
        if not training or samples is None:
            return super().forward(data, training)
        with_map = sum('token_label' in sample for sample in samples)
        if with_map not in (0, len(samples)):
            raise ValueError(f'only {with_map} of {len(samples)} samples have a token_label')
        if with_map and self.batch_augments is not None:
            raise ValueError(
                'batch_augments (train_cfg.augments) mix images but not label maps; remove them, '
                'and set mixup_alpha of TokenLabelDataPreprocessor or mix_token of the backbone'
            )
        data = super().forward(data, training)
        if with_map:
            self.set_token_scores(data)
        elif 'gt_score' not in samples[0] and 'gt_label' in samples[0]:
            labels = torch.cat([sample.gt_label for sample in samples])
            for sample, score in zip(
                samples, one_hot_target(labels, self.num_classes, self.smoothing)
            ):
                sample.set_gt_score(score)
        return data

    def set_token_scores(self, data: dict) -> None:
        """Set ``gt_token_score`` on the samples, and mix the images if asked to."""
        samples = data['data_samples']
        label = torch.stack([torch.as_tensor(sample.token_label) for sample in samples])
        crop = torch.stack(
            [
                torch.as_tensor(sample.get('crop_coords', (0.0, 0.0, 1.0, 1.0)), dtype=torch.float)
                for sample in samples
            ]
        )
        if label.ndim != 5 or label.shape[1] != 2:
            raise ValueError(
                f'token_label must be (2, k, H, W) for each image, got {tuple(label.shape[1:])}'
            )
        if not 0 <= label[:, 1].min() <= label[:, 1].max() < self.num_classes:
            raise ValueError(
                f'class ids of the label maps range from {label[:, 1].min():.0f} to '
                f'{label[:, 1].max():.0f}; num_classes is {self.num_classes}'
            )
        lam = np.random.beta(self.mixup_alpha, self.mixup_alpha) if self.mixup_alpha else 1.0
        target = token_label_target(
            label.to(self.device),
            crop.to(self.device),
            torch.cat([sample.gt_label for sample in samples]),
            self.num_classes,
            self.label_size,
            self.smoothing,
            self.coord_order,
            lam,
        )
        for sample, score in zip(samples, target):
            sample.set_field(score, 'gt_token_score', dtype=Tensor)
        if lam < 1:
            data['inputs'] = lam * data['inputs'] + (1 - lam) * data['inputs'].flip(0)


def _classifier(head: nn.Module) -> Callable[[Tensor], Tensor]:
    """The part of a head that maps features to logits, place by place."""
    for name in ('aux_fc', 'layers', 'fc'):
        part = getattr(head, name, None)
        if isinstance(part, nn.ModuleList):
            return nn.Sequential(*part)
        if hasattr(part, 'head_dist'):  # DeiT's second classifier; its logits are averaged
            return lambda x: (part.head(x) + part.head_dist(x)) / 2
        if isinstance(part, nn.Module):
            return part
    raise ValueError(
        f'{type(head).__name__} has no linear classifier (aux_fc, fc or layers) to apply to every '
        'place of a feature map; annotate with a model that has one'
    )


@contextmanager
def _with_places(backbone: nn.Module) -> Iterator[None]:
    """Have a backbone give its last feature map, where it would pool it or give the class token."""
    given = dict(vars(backbone))
    if given.get('out_type') in ('cls_token', 'avg_featmap'):
        backbone.out_type = 'featmap'
    if given.get('gap_before_final_norm'):  # ConvNeXt and its kin
        backbone.gap_before_final_norm = False
    try:
        yield
    finally:
        for name in ('out_type', 'gap_before_final_norm'):
            if name in given:
                setattr(backbone, name, given[name])


@torch.no_grad()
def dense_scores(model: nn.Module, images: Tensor) -> Tensor:
    """Class scores of an annotator at every place of its last feature map (section 3.1).

    Args:
        model (nn.Module): An mmpretrain ``ImageClassifier`` in eval mode whose head is linear.
            Convolutional networks and transformers with patch tokens will do.
        images (Tensor): Normalised images, (B, 3, H, W).

    Returns:
        Tensor: Logits, (B, K, h, w).

    Raises:
        ValueError: If the head cannot be applied place by place, or the features have no grid.
    """
    classifier = _classifier(model.head)
    backbone = model.backbone
    with _with_places(backbone):
        features = model.extract_feat(images, stage='backbone')[-1]
    if isinstance(features, (list, tuple)):  # [patch_map, cls_token, ...]
        features = features[0]
    pooled = getattr(backbone, 'out_type', None) == 'avg_featmap'
    if pooled and hasattr(backbone, 'ln2'):  # the host's norm after pooling
        features = backbone.ln2(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    if features.ndim == 3:  # (B, N, C), perhaps with a class token in front
        side = int(features.shape[1] ** 0.5)
        features = features[:, features.shape[1] - side * side :]
        features = features.mT.unflatten(2, (side, side))
    if features.ndim != 4:
        raise ValueError(
            f'{type(backbone).__name__} gives features of shape {tuple(features.shape)}, which '
            'have no places; set its out_type to a feature map'
        )
    channels = getattr(model.head, 'in_channels', features.shape[1])
    if features.shape[1] != channels:
        raise ValueError(
            f'{type(backbone).__name__} gives maps of {features.shape[1]} channels, and '
            f'{type(model.head).__name__} takes {channels}; annotate with another model'
        )
    return classifier(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def top_classes(scores: Tensor, k: int = 5) -> List[Tensor]:
    """Label maps as they are kept on disk: the best classes of each cell.

    Args:
        scores (Tensor): Logits, (B, K, h, w).
        k (int): How many classes to keep. Defaults to 5.

    Returns:
        list[Tensor]: For each image (2, k, h, w): values, then class ids. In half precision, or in
        single precision where there are more classes (2048) than half precision can count.
    """
    values, ids = scores.float().topk(k, dim=1)
    dtype = torch.float16 if scores.shape[1] <= 2048 else torch.float32
    return list(torch.stack((values, ids.to(values)), 1).to(dtype))
