"""The detector O2DETR, and F-O2DETR when it is given a cascaded head."""

from typing import Dict, List, Optional, Tuple

import torch
from mmdet.models.detectors import DeformableDETR
from mmdet.models.layers import (
    DeformableDetrTransformerDecoder,
    DeformableDetrTransformerEncoder,
    SinePositionalEncoding,
)
from mmdet.structures import SampleList
from torch import Tensor, nn

from mmextra.det.o2detr.encoder import DepthwiseSeparableConv
from mmextra.engine.checkpoint import is_checkpoint_init
from mmextra.registry import MODELS


class _Sides:
    """The first four outputs of a regression branch, (cx, cy, w, h), without the angle."""

    def __init__(self, branch: nn.Module) -> None:
        self.branch = branch

    def __call__(self, x: Tensor) -> Tensor:
        return self.branch(x)[..., :4]


class O2DETRDecoder(DeformableDetrTransformerDecoder):
    """The stock decoder; where it refines boxes, it refines their (cx, cy, w, h).

    The angle is no part of the reference boxes that the attention samples around: the head reads it off
    each layer anew.
    """

    def forward(self, *args, reg_branches: Optional[nn.ModuleList] = None, **kwargs) -> tuple:
        """As the stock decoder's, with regression branches that give five numbers."""
        if reg_branches is not None:
            reg_branches = [_Sides(branch) for branch in reg_branches]
        return super().forward(*args, reg_branches=reg_branches, **kwargs)


@MODELS.register_module()
class O2DETR(DeformableDETR):
    """Oriented object detection with a transformer (arXiv 2106.03146).

    Deformable DETR with an encoder of depthwise separable convolutions and a head that predicts angles.
    With ``refine_head`` it is F-O2DETR: the boxes of the last decoder layer are refined once more, from
    features pooled inside them.

    Args:
        encoder (dict): ``num_layers`` and ``layer_cfg`` of ``mmextra.O2DETREncoder``. With a ``type``, another
            registered encoder, or the stock one: ``type='DeformableDetrTransformerEncoder'``.
        refine_head (dict, optional): Config of the cascaded head, ``mmextra.O2DETRRefineHead``. Defaults to
            None.
        with_box_refine (bool): Whether each decoder layer refines the (cx, cy, w, h) of the one before.
            Defaults to False.
        as_two_stage (bool): Must be False, there is no two-stage O2DETR. Defaults to False.
        test_cfg (dict, optional): ``max_per_img``, the number of detections of an image. Defaults to None,
            one for each query.
        **kwargs: Further arguments of stock ``DeformableDETR``.

    Raises:
        ValueError: If ``as_two_stage`` is True, if the positional encoding does not have as many
            channels as the encoder, or if the cascaded head has other channels, classes or levels.
    """

    def __init__(
        self,
        *args,
        encoder: dict,
        refine_head: Optional[dict] = None,
        as_two_stage: bool = False,
        test_cfg: Optional[dict] = None,
        **kwargs,
    ) -> None:
        if as_two_stage:
            raise ValueError(
                'O2DETR starts from learned queries only: set as_two_stage=False; for a second look at '
                'the boxes give a refine_head'
            )
        super().__init__(*args, encoder=encoder, test_cfg=test_cfg, **kwargs)
        self.refine_head = None
        if refine_head is not None:
            self.refine_head = MODELS.build(dict(refine_head, test_cfg=test_cfg))
            self._check_refine_head()

    def _check_refine_head(self) -> None:
        """Raise a ValueError where the cascaded head does not fit the detector."""
        head = self.refine_head
        for name, given, expected, whose in (
            ('embed_dims', head.query_fc.in_features, self.embed_dims, 'that of the encoder'),
            (
                'num_classes',
                head.fc_cls.out_features,
                self.bbox_head.num_classes,
                "the bbox_head's",
            ),
            (
                'strides',
                len(head.extractor.featmap_strides),
                self.num_feature_levels,
                'one for each level (num_feature_levels)',
            ),
        ):
            if given != expected:
                number = f'{given} strides' if name == 'strides' else given
                raise ValueError(f'refine_head.{name} must be {expected}, {whose}, got {number}')

    def _init_layers(self) -> None:
        self.positional_encoding = SinePositionalEncoding(**self.positional_encoding)
        self.encoder = _build_encoder(self.encoder)
        self.decoder = O2DETRDecoder(**self.decoder)
        self.embed_dims = self.encoder.embed_dims
        if 2 * self.positional_encoding.num_feats != self.embed_dims:
            raise ValueError(
                f'positional_encoding.num_feats must be {self.embed_dims // 2}, half the channels of the '
                f'encoder, got {self.positional_encoding.num_feats}'
            )
        self.query_embedding = nn.Embedding(self.num_queries, 2 * self.embed_dims)
        self.reference_points_fc = nn.Linear(self.embed_dims, 2)
        level_embed = torch.zeros(self.num_feature_levels, self.embed_dims)
        if getattr(self.encoder, 'with_pos', True):
            self.level_embed = nn.Parameter(level_embed)
        else:  # no gradient would ever reach it, which distributed training does not accept
            self.register_buffer('level_embed', level_embed, persistent=False)

    def init_weights(self) -> None:
        """As stock Deformable DETR, but the encoder's convolutions keep their own initialisation, and
        weights that ``init_cfg`` loads are left as they are."""
        if is_checkpoint_init(self.init_cfg):
            super(DeformableDETR, self).init_weights()  # its own would draw the transformer anew
            return
        super().init_weights()
        for module in self.encoder.modules():
            if isinstance(module, DepthwiseSeparableConv):
                module.init_weights()

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Dict[str, Tensor]:
        """Losses of all decoder layers and, for F-O2DETR, of the cascaded head.

        Args:
            batch_inputs (Tensor): Images, (B, 3, H, W).
            batch_data_samples (list[:obj:`DetDataSample`]): With ``gt_instances.bboxes`` (n, 5) in pixels,
                (cx, cy, w, h, angle in radians).

        Returns:
            dict: ``loss_cls``, ``loss_bbox``, ``loss_iou``; the same as ``d0.loss_cls``... for the layers before
            the last; ``refine.loss_*`` for F-O2DETR.
        """
        metas = [sample.metainfo for sample in batch_data_samples]
        truths = [sample.gt_instances for sample in batch_data_samples]
        scores, boxes, states, maps = self._decode(batch_inputs, batch_data_samples)
        losses = self.bbox_head.loss_by_feat(scores, boxes, None, None, truths, metas)
        if self.refine_head is not None:
            proposals = self.bbox_head.to_pixels(boxes[-1], metas).detach()
            matches = self.bbox_head.match(scores[-1], boxes[-1], truths, metas)
            refined = self.refine_head.loss(maps, states, proposals, matches, truths)
            losses.update({f'refine.{name}': value for name, value in refined.items()})
        return losses

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True
    ) -> SampleList:
        """Detect objects.

        Args:
            batch_inputs (Tensor): Images, (B, 3, H, W).
            batch_data_samples (list[:obj:`DetDataSample`]): Their meta information.
            rescale (bool): Whether boxes are in pixels of the original image, rather than of the
                resized one. Defaults to True.

        Returns:
            list[:obj:`DetDataSample`]: With ``pred_instances``: ``scores`` (n,) in descending order, ``labels``
            (n,) and ``bboxes`` (n, 5) in le90.
        """
        metas = [sample.metainfo for sample in batch_data_samples]
        scores, boxes, states, maps = self._decode(batch_inputs, batch_data_samples)
        if self.refine_head is None:
            results = self.bbox_head.predict_by_feat(scores, boxes, metas, rescale)
        else:
            proposals = self.bbox_head.to_pixels(boxes[-1], metas)
            results = self.refine_head.predict(maps, states, proposals, metas, rescale)
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Tuple[Tensor, ...]:
        """Class logits and normalised boxes of all decoder layers and, for F-O2DETR, refined logits
        (B, Q, classes) and deltas (B, Q, 5)."""
        metas = [sample.metainfo for sample in batch_data_samples]
        scores, boxes, states, maps = self._decode(batch_inputs, batch_data_samples)
        if self.refine_head is None:
            return scores, boxes
        proposals = self.bbox_head.to_pixels(boxes[-1], metas)
        refined = self.refine_head(maps, states, self.refine_head.prepare(proposals))
        return (scores, boxes, *refined)

    def _decode(self, inputs: Tensor, samples: SampleList) -> tuple:
        """Class logits and boxes of every decoder layer, the last layer's states (B, Q, C), and the
        memory as maps if there is a cascaded head."""
        outputs = self.forward_transformer(self.extract_feat(inputs), samples)
        scores, boxes = self.bbox_head(outputs['hidden_states'], outputs['references'])
        return scores, boxes, outputs['hidden_states'][-1], outputs.get('memory_maps')

    def pre_decoder(
        self, memory: Tensor, memory_mask: Optional[Tensor], spatial_shapes: Tensor
    ) -> Tuple[dict, dict]:
        """As stock; hands on the memory as maps too, if there is a cascaded head."""
        decoder_inputs, head_inputs = super().pre_decoder(memory, memory_mask, spatial_shapes)
        if self.refine_head is not None:
            head_inputs['memory_maps'] = memory_maps(memory, memory_mask, spatial_shapes)
        return decoder_inputs, head_inputs


def memory_maps(memory: Tensor, mask: Optional[Tensor], spatial_shapes: Tensor) -> List[Tensor]:
    """The memory (B, N, C) as one map (B, C, h, w) for each level, zero where images are padded."""
    if mask is not None:
        memory = memory.masked_fill(mask[..., None], 0.0)
    shapes = [(h, w) for h, w in spatial_shapes.tolist()]
    levels = memory.split([h * w for h, w in shapes], 1)
    return [tokens.transpose(1, 2).unflatten(2, shape) for tokens, shape in zip(levels, shapes)]


def _build_encoder(cfg: dict) -> nn.Module:
    """Our encoder, unless the config has a ``type``; the stock one is in no registry."""
    cfg = dict(cfg)
    cfg.setdefault('type', 'mmextra.O2DETREncoder')
    if cfg['type'] == 'DeformableDetrTransformerEncoder':
        cfg.pop('type')
        return DeformableDetrTransformerEncoder(**cfg)
    return MODELS.build(cfg)
