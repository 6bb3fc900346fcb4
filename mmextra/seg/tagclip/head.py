"""TagCLIP's decoder: masks of class texts and of the trusty token (arXiv 2304.07547, section 3)."""

from typing import Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import FFN
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from torch import Tensor, nn

from mmextra.registry import MODELS

WEIGHTINGS = (False, 'seen', 'unseen', 'both', True)
TRUSTY_TARGETS = ('novel', 'unlabelled')


class MaskAttention(nn.Module):
    """Cross-attention whose logits, averaged over the heads, are masks.

    Args:
        dim (int): Channels D.
        num_heads (int): Attention heads.
        dropout (float): Dropout rate of the attention.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        """What queries (B, Q, D) gather from the memory (B, N, D)."""
        q, k, v = (
            layer(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in ((self.q, query), (self.k, memory), (self.v, memory))
        )
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.proj(out.transpose(1, 2).flatten(2))

    def masks(self, query: Tensor, memory: Tensor) -> Tensor:
        """Mask logits (B, Q, N): the mean over heads of ``q k / sqrt(D / heads)``.

        The heads' products add up to that of the undivided vectors.
        """
        head_dim = query.shape[-1] // self.num_heads
        return self.q(query) @ self.k(memory).mT / (self.num_heads * head_dim**0.5)


class MaskDecoderLayer(nn.Module):
    """Post-norm decoder layer over text queries (section 3.2).

    Args:
        dim (int): Channels D.
        num_heads (int): Attention heads.
        self_attention (bool): Whether the queries attend to each other first.
        dropout (float): Dropout rate. Defaults to 0.1.
    """

    def __init__(
        self, dim: int, num_heads: int, self_attention: bool, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.self_attn = None
        if self_attention:
            self.self_attn = nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True)
        self.cross_attn = MaskAttention(dim, num_heads, dropout)
        self.ffn = FFN(dim, 4 * dim, act_cfg=dict(type='ReLU', inplace=True), ffn_drop=dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        """Update queries (B, Q, D) from the memory (B, N, D)."""
        query = self.attend_to_each_other(query)
        query = self.norm2(query + self.dropout(self.cross_attn(query, memory)))
        return self.norm3(self.ffn(query))

    def attend_to_each_other(self, query: Tensor) -> Tensor:
        """The part before the cross-attention."""
        if self.self_attn is None:
            return query
        update = self.self_attn(query, query, query, need_weights=False)[0]
        return self.norm1(query + self.dropout(update))

    def masks(self, query: Tensor, memory: Tensor) -> Tensor:
        """Mask logits (B, Q, N) of the layer, without the update that nobody reads after the last."""
        return self.cross_attn.masks(self.attend_to_each_other(query), memory)


@MODELS.register_module()
class TagCLIPHead(BaseDecodeHead):
    """Masks for any set of text embeddings, and a trusty map that says where novel classes are.

    Training labels are indices into all classes, as the data set gives them. What the seen classes
    are, the head knows; it masks the rest.

    Args:
        in_channels (int): Channels D of image map and text embeddings.
        channels (int): The same. Defaults to None, ``in_channels``.
        seen_idx (Sequence[int]): Indices of the classes that training names.
        all_idx (Sequence[int]): Indices of all classes, ``range(C)``.
        num_classes (int, optional): Accepted for configs that state it; must be the number of seen or
            of all classes. Defaults to None.
        num_layers (int, optional): Accepted likewise; must be that of ``operator``. Defaults to None.
        num_heads (int): Attention heads. Defaults to 8.
        operator (str): A letter for each decoder layer: ``a`` with, ``n`` without self-attention of
            the queries. Defaults to ``'a_n_n'``.
        discriminate (bool): Whether there is a trusty token. Defaults to True.
        eval_disc_weight (bool | str): How the trusty map w weighs the scores at test time:
            ``'seen'`` multiplies those of seen classes by ``1 - w``, ``'unseen'`` those of unseen ones by
            ``w``, ``'both'`` (or True) does both, as the published results need, and False, as in
            training, neither. Defaults to ``'both'``.
        gamma (float): Taken off the scores of seen classes at test time, unless ``self_training``.
            Defaults to 0.1.
        self_training (bool): The transductive setting: training has queries of all classes, and
            novel pixels are labelled with the novel class that the model prefers there.
            Defaults to False.
        trusty_target (str): What the trusty map learns to be 1 on. ``'novel'``, as published: pixels
            whose unmasked label is a novel class, so that training has to know where, though not
            which, novel classes are. ``'unlabelled'``: pixels whose masked label is 255, which an
            inductive data set shows by itself; background joins the novel side. Where nearly every
            pixel is labelled (COCO-Stuff) the two nearly coincide, on VOC they do not. Pad the labels
            with ``pad_index`` for it. Defaults to ``'novel'``.
        pad_index (int): Label that all losses ignore: padding, in the transductive setting and with
            ``'unlabelled'`` (``seg_pad_val`` of the data preprocessor). Like ``ignore_index``, by
            default 255, which stands for pixels without a class, it lies beyond the classes.
            Defaults to 200.
        dropout_ratio (float): Dropout rate of the decoder. Defaults to 0.1.
        loss_decode (dict): Defaults to ``dict(type='mmextra.TagCLIPLoss')``.
        **kwargs: Further arguments of ``BaseDecodeHead``.

    Raises:
        ValueError: If an argument is out of its range; or, in training, if a label is not one of
            the classes.
    """

    official_layout = 'tagclip'

    def __init__(
        self,
        in_channels: int,
        channels: Optional[int] = None,
        *,
        seen_idx: Sequence[int],
        all_idx: Sequence[int],
        num_classes: Optional[int] = None,
        num_layers: Optional[int] = None,
        num_heads: int = 8,
        operator: str = 'a_n_n',
        discriminate: bool = True,
        eval_disc_weight: Union[bool, str] = 'both',
        gamma: float = 0.1,
        self_training: bool = False,
        trusty_target: str = 'novel',
        pad_index: int = 200,
        dropout_ratio: float = 0.1,
        loss_decode: dict = dict(type='mmextra.TagCLIPLoss'),
        init_cfg: Optional[dict] = None,
        **kwargs,
    ) -> None:
        layers = operator.split('_')
        seen_idx, all_idx = list(seen_idx), list(all_idx)
        self._check_classes(seen_idx, all_idx, num_classes)
        self._check_options(in_channels, channels, num_heads, layers, num_layers)
        if eval_disc_weight not in WEIGHTINGS:
            raise ValueError(
                f'eval_disc_weight must be one of {WEIGHTINGS}, got {eval_disc_weight!r}'
            )
        if trusty_target not in TRUSTY_TARGETS:
            raise ValueError(
                f'trusty_target must be one of {TRUSTY_TARGETS}, got {trusty_target!r}'
            )
        if eval_disc_weight and not discriminate:
            raise ValueError(
                'eval_disc_weight needs the trusty token: set it False, or discriminate=True'
            )
        if self_training and len(seen_idx) == len(all_idx):
            raise ValueError(
                'self_training needs novel classes: seen_idx names all classes. To test such a model '
                'without a split, set self_training=False and gamma=0'
            )
        super().__init__(
            in_channels,
            in_channels,
            num_classes=len(all_idx),
            dropout_ratio=dropout_ratio,
            threshold=0.5,
            loss_decode=loss_decode,
            init_cfg=init_cfg,
            **kwargs,
        )
        del self.conv_seg
        self.seen_idx, self.all_idx = seen_idx, all_idx
        self.novel_idx = [i for i in all_idx if i not in set(seen_idx)]
        self.eval_disc_weight = 'both' if eval_disc_weight is True else eval_disc_weight
        self.gamma = gamma
        self.self_training = self_training
        self.trusty_target = trusty_target
        self.pad_index = pad_index

        self.descriptor = nn.Linear(2 * in_channels, in_channels)
        self.decoder = nn.ModuleList(
            MaskDecoderLayer(in_channels, num_heads, kind == 'a', dropout_ratio) for kind in layers
        )
        self.trusty_token = nn.Parameter(torch.empty(1, in_channels)) if discriminate else None
        self._init_matrices()
        self._freeze_unread()

    @staticmethod
    def _check_classes(seen_idx, all_idx, num_classes) -> None:
        if all_idx != list(range(len(all_idx))) or not all_idx:
            raise ValueError(
                f'all_idx must be 0, 1, ..., the classes of the data set, got {all_idx}'
            )
        if not set(seen_idx) <= set(all_idx) or len(set(seen_idx)) < len(seen_idx):
            raise ValueError(
                f'seen_idx must hold different indices of the {len(all_idx)} classes '
                f'(0 to {len(all_idx) - 1}) of all_idx, got {seen_idx}'
            )
        if num_classes not in (None, len(seen_idx), len(all_idx)):
            raise ValueError(
                f'num_classes={num_classes}, but there are {len(seen_idx)} seen and {len(all_idx)} '
                'classes in all; leave it out'
            )

    @staticmethod
    def _check_options(in_channels, channels, num_heads, layers, num_layers) -> None:
        if channels not in (None, in_channels):
            raise ValueError(f'channels must be in_channels={in_channels}, got {channels}')
        if in_channels % num_heads:
            raise ValueError(f'in_channels={in_channels} is no multiple of num_heads={num_heads}')
        if not set(layers) <= {'a', 'n'}:
            raise ValueError(
                f"operator must have an 'a' or an 'n' for each layer, as 'a_n_n', got {'_'.join(layers)!r}"
            )
        if num_layers not in (None, len(layers)):
            raise ValueError(
                f'num_layers={num_layers}, but operator {"_".join(layers)!r} has {len(layers)}'
            )

    def _freeze_unread(self) -> None:
        """Freeze what the masks do not depend on, so that distributed training need not look for it.

        The authors' layout has a norm before self-attention in layers without one, and a whole last
        layer, of which the masks read queries and keys alone.
        """
        last = self.decoder[-1]
        unread = [last.cross_attn.v, last.cross_attn.proj, last.ffn, last.norm2, last.norm3]
        unread += [layer.norm1 for layer in self.decoder if layer.self_attn is None]
        for module in unread:
            module.requires_grad_(False)

    def _init_matrices(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def init_weights(self) -> None:
        """Xavier for every matrix, the trusty token too, as the released training code really does."""
        if not self.is_init:
            self._init_matrices()
        super().init_weights()

    def forward(self, inputs: Tuple[Tensor, Tensor, Tensor]) -> Tuple[Tensor, Optional[Tensor]]:
        """Mask logits of text embeddings.

        Args:
            inputs (tuple): The map (B, D, h, w) and the embedding (B, D) of the images, and the text
                embeddings (C, D), all of length 1.

        Returns:
            tuple: Logits of the masks (B, C, h, w), and of the trusty map (B, 1, h, w), or None
                without trusty token.
        """
        feature, image, text = inputs
        query = self.describe(image, text)
        memory = feature.flatten(2).mT  # (B, h * w, D)
        for layer in self.decoder[:-1]:
            query = layer(query, memory)
        masks = self.decoder[-1].masks(query, memory).unflatten(2, feature.shape[-2:])
        if self.trusty_token is None:
            return masks, None
        return masks[:, :-1], masks[:, -1:]

    def describe(self, image: Tensor, text: Tensor) -> Tensor:
        """Queries (B, C + 1, D): texts, and the trusty token, related to each image (section 3.2)."""
        text = text.to(image.dtype)
        if self.trusty_token is not None:
            text = torch.cat((text, self.trusty_token.to(text.dtype)))
        text = text.expand(len(image), -1, -1)
        return self.descriptor(torch.cat((image[:, None] * text, text), 2))

    def loss_by_feat(
        self, seg_logits: Tuple[Tensor, Optional[Tensor]], batch_data_samples: list
    ) -> Dict[str, Tensor]:
        """Losses of mask and trusty logits (B, C, h, w) against the samples' labels."""
        label = self._stack_batch_gt(batch_data_samples).squeeze(1).long()
        masks, trusty = (
            None if x is None else self._resize(x, label.shape[-2:]) for x in seg_logits
        )
        masked, trusty_target = self.mask_labels(label)
        if self.self_training:
            masked = self.pseudo_label(masked, trusty_target, masks)
        return self.loss_decode(masks, masked, trusty, trusty_target, label != self.pad_index)

    def mask_labels(self, label: Tensor) -> Tuple[Tensor, Tensor]:
        """Hide the names of novel classes.

        Args:
            label (Tensor): (B, H, W), indices into all classes, ``ignore_index`` or ``pad_index``.

        Returns:
            tuple: For each pixel the query it belongs to, or ``ignore_index`` (padding included), and
                whether the trusty map is to be 1 there.
        """
        if not self.seen_idx:
            raise ValueError('training needs seen classes: seen_idx is empty')
        for name in ('pad_index', 'ignore_index'):
            if 0 <= getattr(self, name) < self.num_classes:
                raise ValueError(
                    f'label {name}={getattr(self, name)} stands for pixels without a class, but there '
                    f'are {self.num_classes} classes: set {name} beyond them'
                )
        special = (label == self.ignore_index) | (label == self.pad_index)
        wrong = ((label < 0) | (label >= self.num_classes)) & ~special
        if wrong.any():
            raise ValueError(
                f'label {label[wrong][0].item()} is not one of the {self.num_classes} classes, and '
                f'neither ignore_index={self.ignore_index} nor pad_index={self.pad_index}'
            )
        # Seen class -> its query; the entry behind the classes is for all that has none.
        query_of = label.new_full((self.num_classes + 1,), self.ignore_index)
        seen = torch.tensor(self.seen_idx, device=label.device)
        query_of[seen] = seen if self.self_training else torch.arange(len(seen)).to(seen)
        masked = query_of[label.masked_fill(special, self.num_classes)]
        if self.trusty_target == 'novel':
            return masked, (masked == self.ignore_index) & ~special
        return masked, (masked == self.ignore_index) & (label != self.pad_index)

    def pseudo_label(self, masked: Tensor, unnamed: Tensor, masks: Tensor) -> Tensor:
        """Give pixels (B, H, W) without a name the novel class of the largest mask logit."""
        novel = torch.tensor(self.novel_idx, device=masked.device)
        preferred = novel[masks[:, novel].detach().argmax(1)]
        return torch.where(unnamed, preferred, masked)

    def predict(self, inputs: tuple, batch_img_metas: List[dict], test_cfg: dict) -> Tensor:
        """Scores (B, C, H, W) of all classes, weighed by the trusty map."""
        return self.predict_with_trusty(inputs, batch_img_metas)[0]

    def predict_with_trusty(
        self, inputs: tuple, batch_img_metas: List[dict]
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """Scores (B, C, H, W), and the trusty map (B, 1, H, W) in 0 to 1, None without token."""
        masks, trusty = self(inputs)
        scores = self.predict_by_feat(masks, batch_img_metas).sigmoid()
        if trusty is not None:
            trusty = self.predict_by_feat(trusty, batch_img_metas).sigmoid()
        return self.weigh(scores, trusty), trusty

    def weigh(self, scores: Tensor, trusty: Optional[Tensor]) -> Tensor:
        """Bring seen and unseen classes into balance (section 3.4).

        Args:
            scores (Tensor): (B, C, H, W).
            trusty (Tensor, optional): (B, 1, H, W).
        """
        seen = torch.zeros(self.num_classes, 1, 1, dtype=torch.bool, device=scores.device)
        seen[self.seen_idx] = True
        if self.gamma and not self.self_training:
            scores = scores - self.gamma * seen
        if self.eval_disc_weight in ('seen', 'both'):
            scores = torch.where(seen, scores * (1 - trusty), scores)
        if self.eval_disc_weight in ('unseen', 'both'):
            scores = torch.where(seen, scores, scores * trusty)
        return scores

    def _resize(self, x: Tensor, size: Tuple[int, int]) -> Tensor:
        return resize(x, size=size, mode='bilinear', align_corners=self.align_corners)
