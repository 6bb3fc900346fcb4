"""Which categories METR asks about, which queries ask, and their denoising queries.

Language-aware Multiple Datasets Detection Pretraining for DETRs (arXiv 2304.03580).
"""

from typing import List, Optional, Tuple

import torch
from mmdet.models.layers import CdnQueryGenerator
from mmengine.structures import InstanceData
from torch import Tensor


def select_categories(
    logits: Tensor, sizes: Tensor, num_categories: int, present: Optional[Tensor] = None
) -> Tuple[Tensor, Tensor]:
    """Choose the categories that an image is asked about (4).

    All present ones, or at random so many of them as there is room for; then those that the
    category extraction module thinks likeliest.

    Args:
        logits (Tensor): Scores of the categories, detached, (B, K).
        sizes (Tensor): Categories that each image's label space has, (B,); what lies beyond is
            padding.
        num_categories (int): Room for categories, n.
        present (Tensor, optional): Whether the image has boxes of the category, (B, K). Defaults to
            None: by score alone, as in testing.

    Returns:
        tuple: Chosen categories, (B, min(n, K)), and how many of them are in force in each image,
        (B,): the whole label space where it is smaller than n.
    """
    if present is not None:
        # Above every logit, in random order.
        first = torch.rand_like(logits) + (logits.max() - logits.min() + 1)
        logits = torch.where(present, logits.max() + first, logits)
    padding = torch.arange(logits.shape[1], device=logits.device) >= sizes[:, None]
    ranked = logits.masked_fill(padding, -torch.inf)
    chosen = ranked.topk(min(num_categories, logits.shape[1]), dim=1).indices
    return chosen, sizes.clamp(max=num_categories)


def group_layout(num_queries: int, counts: Tensor) -> Tuple[Tensor, Tensor]:
    """Deal N queries out to an image's categories (5).

    Each category gets floor(N / n) queries in a row; what remains goes one each to the first.

    Args:
        num_queries (int): N.
        counts (Tensor): Categories n of each image, (B,).

    Returns:
        tuple: For each query its place among the chosen categories and its place within its group,
        both (B, N).
    """
    query = torch.arange(num_queries, device=counts.device)[None]  # (1, N)
    size = num_queries // counts[:, None]  # (B, 1)
    remainder = num_queries % counts[:, None]
    late = query - remainder * (size + 1)  # counted from the first group without an extra query
    early = late < 0
    slot = torch.where(early, query // (size + 1), remainder + late // size)
    position = torch.where(early, query % (size + 1), late % size)
    return slot, position


class LabelSpaceCdnQueryGenerator(CdnQueryGenerator):
    """Contrastive denoising queries whose content is the vector of a category name (8).

    Labels are changed within the image's label space. A query whose label was changed asks about
    another category than that of its box: it is a negative.

    Args:
        embed_dims (int): Width.
        num_matching_queries (int): Queries beside the denoising ones.
        options: ``label_noise_scale``, ``box_noise_scale`` and ``group_cfg`` of the stock generator.
    """

    def __init__(self, embed_dims: int, num_matching_queries: int, **options) -> None:
        super().__init__(
            num_classes=1,
            embed_dims=embed_dims,
            num_matching_queries=num_matching_queries,
            **options,
        )
        del self.label_embedding  # category names take its place

    def __call__(
        self, targets: List[InstanceData], img_shapes: List[tuple], text: Tensor, sizes: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor, dict]:
        """Make the denoising queries of a batch.

        Args:
            targets (list[InstanceData]): ``bboxes`` (x1, y1, x2, y2; pixels) and ``labels`` of each
                of B images.
            img_shapes (list[tuple]): Height and width of each image.
            text (Tensor): Vectors of each image's categories, (B, K, C).
            sizes (Tensor): Categories of each image's label space, (B,).

        Returns:
            tuple: Content (B, Q, C) and unactivated boxes (B, Q, 4) of the queries, the attention
            mask (Q + N, Q + N), and ``dn_meta`` of the stock head with ``positive``, (B, Q): True
            where a query has to find its box.
        """
        device, counts = text.device, [len(target) for target in targets]
        labels = torch.cat([target.labels for target in targets])
        boxes = [
            t.bboxes / t.bboxes.new_tensor([w, h, w, h]) for t, (h, w) in zip(targets, img_shapes)
        ]
        most, total = max(counts), sum(counts)
        num_groups = self.get_num_groups(most)
        repeats = 2 * num_groups  # each group holds the boxes twice: a little noise, then much

        image = torch.arange(len(targets), device=device)
        image = image.repeat_interleave(torch.tensor(counts, device=device))
        first = torch.cat([torch.arange(count, device=device) for count in counts])
        block = torch.arange(repeats, device=device).repeat_interleave(total)
        image, column = image.repeat(repeats), first.repeat(repeats) + most * block
        labels = labels.repeat(repeats)

        changed = torch.rand(len(labels), device=device) < self.label_noise_scale * 0.5
        other = (torch.rand(len(labels), device=device) * sizes[image]).long()
        asked = torch.where(changed, other, labels)

        shape = (len(targets), most * repeats)
        query = text.new_zeros(*shape, self.embed_dims)
        query[image, column] = text[image, asked]
        reference = boxes[0].new_zeros(*shape, 4)
        reference[image, column] = self.generate_dn_bbox_query(torch.cat(boxes), num_groups)
        positive = torch.zeros(shape, dtype=torch.bool, device=device)
        positive[image, column] = (asked == labels) & (block % 2 == 0)

        mask = self.generate_dn_mask(most, num_groups, device)
        meta = dict(
            num_denoising_queries=shape[1], num_denoising_groups=num_groups, positive=positive
        )
        return query, reference, mask, meta
