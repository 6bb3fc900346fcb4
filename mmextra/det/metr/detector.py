"""METR: a DINO whose queries each ask about one named category.

Language-aware Multiple Datasets Detection Pretraining for DETRs (arXiv 2304.03580). Registered here:
``METR``, and ``AnyWidthDINO`` for its small demonstrations.
"""

from typing import Dict, List, Optional, Sequence, Tuple, Union

import torch
from mmdet.models.detectors import DINO, DeformableDETR
from mmdet.models.layers import MLP
from mmdet.structures import DetDataSample, OptSampleList, SampleList
from mmdet.utils import InstanceList
from mmengine.model import bias_init_with_prob
from mmengine.structures import InstanceData, LabelData
from torch import Tensor, nn

from mmextra.det.metr.embeddings import LabelSpace, LabelSpaces
from mmextra.det.metr.head import METRHead
from mmextra.det.metr.queries import LabelSpaceCdnQueryGenerator, group_layout, select_categories
from mmextra.engine.checkpoint import is_checkpoint_init
from mmextra.registry import MODELS

# The stock decoder encodes each of the four numbers of a reference box in so many.
REFERENCE_FEATS = 128


@MODELS.register_module()
class AnyWidthDINO(DINO):
    """The stock DINO for any ``embed_dims``.

    The stock one runs at a width of 256 only: its decoder takes for granted that twice the width is
    the length of an encoded reference box, 4 * 128. At 256 the two are the same. The maintained fork
    of mmdet encodes references with four times the width and needs no change.
    """

    def _init_layers(self) -> None:
        """Fit the layer that reads encoded reference boxes to their length."""
        super()._init_layers()
        if self.decoder.ref_point_head.layers[0].in_features == 2 * self.embed_dims:
            self.decoder.ref_point_head = MLP(
                4 * REFERENCE_FEATS, self.embed_dims, self.embed_dims, 2
            )

    def init_weights(self) -> None:
        """As in DINO, but weights that ``init_cfg`` loads are left as they are."""
        if is_checkpoint_init(self.init_cfg):
            super(DeformableDETR, self).init_weights()  # its own would draw the transformer anew
        else:
            super().init_weights()


@MODELS.register_module()
class METR(AnyWidthDINO):
    """DINO for joint training on data sets with label spaces of their own.

    A category extraction module names the categories that an image may hold; each query is given
    one of them and finds objects of that category alone. Images are asked only about categories of
    their own data set, so that what a data set does not annotate is never taught as background.

    Args:
        label_spaces (dict): Name of a label space -> its category names, or a dataset class that has
            them, say ``dict(coco='mmdet.CocoDataset', cells=('RBC', 'WBC', 'Platelets'))``.
        embeddings (dict): Where the frozen language embeddings of the names come from:
            ``source='file'`` with ``path``, ``'transformers'`` or ``'mmpretrain'`` with the ``path``
            of a local text encoder, ``'hash'`` or ``'characters'``, which need nothing. Defaults to
            ``dict(source='characters')``.
        cem (dict, optional): Arguments of :class:`CategoryExtractionModule`. Defaults to None.
        num_categories (int): Categories that an image is asked about, n. Defaults to 20.
        test_label_space (str | Sequence[str], optional): Label space that all images are asked about
            in testing; a list of names makes a new one. Defaults to None, each image's own.
        use_dn (bool): Whether to train with denoising queries. Defaults to True.
        group_self_attn (bool): Whether queries see those of their own category only. Defaults to
            False.
        dn_cfg (dict, optional): Denoising options, as in DINO. Defaults to None.
        options: Arguments of the stock DINO.

    Raises:
        ValueError: If a label space is empty, unknown or without an embedding, there are fewer
            queries than categories, or the head is no ``METRHead``.
    """

    def __init__(
        self,
        *args,
        label_spaces: Dict[str, LabelSpace],
        embeddings: dict = dict(source='characters'),
        cem: Optional[dict] = None,
        num_categories: int = 20,
        test_label_space: Union[str, Sequence[str], None] = None,
        use_dn: bool = True,
        group_self_attn: bool = False,
        dn_cfg: Optional[dict] = None,
        **options,
    ) -> None:
        dn_cfg = dict(dn_cfg or {})
        # The stock generator is replaced: its embedding of labels would have no gradient.
        super().__init__(*args, dn_cfg=dict(dn_cfg), **options)
        if not isinstance(self.bbox_head, METRHead):
            raise ValueError(
                f'bbox_head is a {type(self.bbox_head).__name__}, expected one with a single logit: set '
                "bbox_head=dict(type='mmextra.METRHead')"
            )
        if not 1 <= num_categories <= self.num_queries:
            raise ValueError(
                f'num_categories must be between 1 and num_queries ({self.num_queries}), found '
                f'{num_categories}'
            )
        self.dn_query_generator = None
        if use_dn:
            self.dn_query_generator = LabelSpaceCdnQueryGenerator(
                self.embed_dims, self.num_queries, **dn_cfg
            )
        label_spaces = dict(label_spaces)
        if isinstance(test_label_space, str) and test_label_space not in label_spaces:
            raise ValueError(
                f'test_label_space {test_label_space!r} is none of {", ".join(label_spaces)}; give a '
                'list of category names for a new one'
            )
        if test_label_space is not None and not isinstance(test_label_space, str):
            label_spaces['test_label_space'] = test_label_space
            test_label_space = 'test_label_space'
        self.test_label_space = test_label_space
        self.num_categories = num_categories
        self.group_self_attn = group_self_attn
        self.label_spaces = LabelSpaces(label_spaces, embeddings, self.embed_dims)
        self.cem = MODELS.build(
            dict(type='mmextra.CategoryExtractionModule', embed_dims=self.embed_dims, **(cem or {}))
        )
        # Tokens and queries start with a prior of 0.01.
        self.token_bias = nn.Parameter(torch.tensor(bias_init_with_prob(0.01)))

    @property
    def dataset_meta(self) -> dict:
        """Metainfo of the data set, for pictures; mmdet sets it from the checkpoint's meta.

        Where all images are asked about one label space, its names are the classes.
        """
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, meta: dict) -> None:
        names, space = self.label_spaces.names, self.test_label_space
        if space is not None or len(names) == 1:
            meta = dict(meta, classes=names[space or next(iter(names))])
        self._dataset_meta = meta

    # Label spaces

    def label_space_of(self, data_sample: DetDataSample) -> str:
        """Name of the label space that an image is asked about.

        Raises:
            ValueError: If the image does not say, and there are several, or it names an unknown one.
        """
        if self.test_label_space is not None and not self.training:
            return self.test_label_space
        names = self.label_spaces.names
        space = data_sample.metainfo.get('label_space')
        if space is None and len(names) == 1:
            return next(iter(names))
        if space not in names:
            raise ValueError(
                f'{data_sample.metainfo.get("img_path", "an image")} has the label space {space!r}, '
                f"expected one of {', '.join(names)}: put dict(type='mmextra.AttachLabelSpace', "
                "name=...) into its pipeline and 'label_space' into the meta_keys of PackDetInputs"
            )
        return space

    def _present_categories(self, samples: SampleList, spaces: List[str], shape) -> Tensor:
        """Whether an image has boxes of each category of its label space, (B, K)."""
        device = self.token_bias.device
        present = torch.zeros(shape, dtype=torch.bool, device=device)
        for row, sample, space in zip(present, samples, spaces):
            labels = sample.gt_instances.labels
            size = len(self.label_spaces.names[space])
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < size:
                raise ValueError(
                    f'{sample.metainfo.get("img_path", "an image")} has the labels '
                    f'{sorted(set(labels.tolist()))}, but label space {space!r} has {size} '
                    'categories: is it the one of this data set?'
                )
            row[labels] = True
        return present

    # Transformer

    def forward_encoder(self, feat_pos: Tensor, **inputs) -> dict:
        """The stock encoder; the positional encoding is handed on to the category extraction."""
        return dict(super().forward_encoder(feat_pos=feat_pos, **inputs), memory_pos=feat_pos)

    def pre_decoder(
        self,
        memory: Tensor,
        memory_mask: Optional[Tensor],
        spatial_shapes: Tensor,
        memory_pos: Tensor,
        batch_data_samples: OptSampleList = None,
    ) -> Tuple[dict, dict]:
        """Choose categories and tokens, and make the queries (3 to 5, 8).

        Args:
            memory (Tensor): Encoder tokens, (B, T, C).
            memory_mask (Tensor, optional): True where a token is padding, (B, T).
            spatial_shapes (Tensor): Height and width of each level, (L, 2).
            memory_pos (Tensor): Positional encoding of the tokens, (B, T, C).
            batch_data_samples (list[DetDataSample]): The batch.

        Returns:
            tuple[dict]: Inputs of the decoder and of the head.
        """
        samples = batch_data_samples
        spaces = [self.label_space_of(sample) for sample in samples]
        text, sizes = self.label_spaces(spaces)  # (B, K, C), (B,)
        coarse = slice(-int(spatial_shapes[-2:].prod(1).sum()), None)  # the two coarsest levels
        logits = self.cem(
            text,
            memory[:, coarse],
            memory_pos[:, coarse],
            None if memory_mask is None else memory_mask[:, coarse],
        )
        present = None
        if self.training:
            present = self._present_categories(samples, spaces, logits.shape)
        # Hard negatives by detached scores: else the detector would teach to hide categories.
        chosen, counts = select_categories(logits.detach(), sizes, self.num_categories, present)
        slot, position = group_layout(self.num_queries, counts)  # (B, N)
        groups = chosen.gather(1, slot)
        asked = text.gather(1, groups[..., None].expand(-1, -1, text.shape[-1]))  # (B, N, C)
        query = self.query_embedding.weight[position] + asked
        token_logits, boxes = self._propose(
            memory, memory_mask, spatial_shapes, text, chosen, slot, position
        )
        reference, mask, head_inputs = boxes.detach(), None, dict(groups=groups)
        if self.training:
            targets = _asked_targets(samples, chosen, counts, logits.shape)
            valid = torch.arange(logits.shape[1], device=sizes.device) < sizes[:, None]
            head_inputs.update(
                enc_outputs_class=token_logits,
                enc_outputs_coord=boxes.sigmoid(),
                targets=targets,
                category_losses=dict(
                    loss_cem=self.cem.loss(logits, present, valid),
                    cem_recall=_recall(logits, present, sizes, self.num_categories),
                ),
            )
            if self.dn_query_generator is not None:
                shapes = [sample.img_shape for sample in samples]
                dn_query, dn_reference, mask, dn_meta = self.dn_query_generator(
                    targets, shapes, text, sizes
                )
                query = torch.cat([dn_query.to(query.dtype), query], 1)
                reference = torch.cat([dn_reference, reference], 1)
                head_inputs.update(dn_meta=dn_meta)
        else:
            head_inputs.update(category_logits=logits)
        if self.group_self_attn:
            mask = self._group_mask(groups, query.shape[1], mask)
        decoder_inputs = dict(
            query=query, memory=memory, reference_points=reference.sigmoid(), dn_mask=mask
        )
        return decoder_inputs, head_inputs

    def _propose(
        self, memory, memory_mask, spatial_shapes, text, chosen, slot, position
    ) -> Tuple[Tensor, Tensor]:
        """The encoder's proposal for each query: of the tokens by score of its category, the one
        with the place that the query has in its group (5).

        Returns:
            tuple: Logit of the (token, category) pair, (B, N, 1), and box before the sigmoid,
            (B, N, 4).
        """
        tokens, anchors = self.gen_encoder_output_proposals(memory, memory_mask, spatial_shapes)
        channels = text.shape[-1]
        keys = text.gather(1, chosen[..., None].expand(-1, -1, channels))  # (B, n, C)
        scores = tokens @ keys.transpose(1, 2) / channels**0.5 + self.token_bias  # (B, T, n)
        valid = anchors.isfinite().all(-1)  # neither padding nor at the very edge
        most = min(int(position.max()) + 1, tokens.shape[1])
        ranked = scores.masked_fill(~valid[..., None], -torch.inf).topk(most, dim=1).indices
        # A small image may have fewer tokens than a group has queries: it starts over.
        place = position % valid.sum(1, keepdim=True).clamp(1, most)
        image = torch.arange(len(memory), device=memory.device)[:, None]
        token = ranked[image, place, slot]  # (B, N)
        to_box = self.bbox_head.reg_branches[self.decoder.num_layers]
        boxes = to_box(tokens[image, token]) + anchors[image, token]
        return scores[image, token, slot][..., None], boxes

    def _group_mask(self, groups: Tensor, total: int, dn_mask: Optional[Tensor]) -> Tensor:
        """Attention mask of each image and head, True where a query must not look."""
        batch, queries = groups.shape
        mask = groups.new_zeros((batch, total, total), dtype=torch.bool)
        if dn_mask is not None:
            mask |= dn_mask
        mask[:, -queries:, -queries:] |= groups[:, :, None] != groups[:, None]
        return mask.repeat_interleave(self.decoder.layers[0].self_attn.num_heads, 0)

    def forward_decoder(
        self,
        query: Tensor,
        memory: Tensor,
        memory_mask: Optional[Tensor],
        reference_points: Tensor,
        dn_mask: Optional[Tensor] = None,
        **levels,
    ) -> dict:
        """The stock decoder; there is no embedding of labels that must be kept in the graph."""
        states, references = self.decoder(
            query=query,
            value=memory,
            key_padding_mask=memory_mask,
            self_attn_mask=dn_mask,
            reference_points=reference_points,
            reg_branches=self.bbox_head.reg_branches,
            **levels,
        )
        return dict(hidden_states=states, references=list(references))

    # What a detector does

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict:
        """Losses of a batch: DINO's, and ``loss_cem``.

        ``cem_recall`` is logged beside them: the part of the present categories that the category
        extraction module would have chosen by itself.
        """
        feats = self.extract_feat(batch_inputs)
        head_inputs = self.forward_transformer(feats, batch_data_samples)
        category_losses = head_inputs.pop('category_losses')
        losses = self.bbox_head.loss(**head_inputs, batch_data_samples=batch_data_samples)
        return {**losses, **category_losses}

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True
    ) -> SampleList:
        """Detections of a batch.

        Returns:
            list[DetDataSample]: With ``pred_instances``, where ``label_names`` stands beside
            ``labels``, and ``pred_categories.score``, the probability of each category of the label
            space.
        """
        feats = self.extract_feat(batch_inputs)
        head_inputs = self.forward_transformer(feats, batch_data_samples)
        results = self.bbox_head.predict(
            **head_inputs, batch_data_samples=batch_data_samples, rescale=rescale
        )
        for sample, result, logits in zip(
            batch_data_samples, results, head_inputs['category_logits']
        ):
            names = self.label_spaces.names[self.label_space_of(sample)]
            result.label_names = [names[label] for label in result.labels.tolist()]
            sample.pred_categories = LabelData(score=logits[: len(names)].sigmoid())
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: OptSampleList = None) -> tuple:
        """Outputs of the head for all decoder layers."""
        feats = self.extract_feat(batch_inputs)
        head_inputs = self.forward_transformer(feats, batch_data_samples)
        return self.bbox_head(head_inputs['hidden_states'], head_inputs['references'])


def _asked_targets(
    samples: SampleList, chosen: Tensor, counts: Tensor, shape: Sequence[int]
) -> InstanceList:
    """The boxes of the categories that are asked about (4)."""
    in_force = torch.arange(chosen.shape[1], device=chosen.device) < counts[:, None]
    asked = torch.zeros(shape, dtype=torch.bool, device=chosen.device).scatter(1, chosen, in_force)
    targets = []
    for row, sample in zip(asked, samples):
        gts = sample.gt_instances
        kept = row[gts.labels]
        targets.append(InstanceData(bboxes=gts.bboxes[kept], labels=gts.labels[kept]))
    return targets


@torch.no_grad()
def _recall(logits: Tensor, present: Tensor, sizes: Tensor, num_categories: int) -> Tensor:
    """The part of the present categories among the top n by score; 1 where none is present."""
    chosen, counts = select_categories(logits, sizes, num_categories)
    in_force = torch.arange(chosen.shape[1], device=chosen.device) < counts[:, None]
    found = (present.gather(1, chosen) & in_force).sum()
    total = present.sum()
    return torch.where(total > 0, found / total.clamp(min=1), 1.0)
