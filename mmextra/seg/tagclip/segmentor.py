"""The TagCLIP segmentor (arXiv 2304.07547)."""

import colorsys
from typing import List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.text_encoder import CLIPTextEncoder
from mmseg.registry import MODELS as MMSEG_MODELS
from mmseg.utils import SampleList, get_classes
from torch import Tensor, nn

from mmextra.engine.arrays import read_arrays
from mmextra.engine.checkpoint import is_checkpoint_init
from mmextra.ops.precision import at_least_float32
from mmextra.registry import MODELS
from mmextra.seg.tagclip.checkpoint import checkpoint_of, load_clip


def class_split(
    count: int,
    base_class: Optional[Sequence[int]] = None,
    novel_class: Optional[Sequence[int]] = None,
    both_class: Optional[Sequence[int]] = None,
) -> Tuple[List[int], List[int]]:
    """Split a vocabulary into seen and unseen classes.

    Args:
        count (int): Names in the vocabulary.
        base_class (Sequence[int], optional): The seen classes. Defaults to those that are not novel.
        novel_class (Sequence[int], optional): The unseen ones. Defaults to those that are not base.
        both_class (Sequence[int], optional): Accepted for configs that state it: all classes.

    Returns:
        tuple: The seen classes, in the order given, and all classes.

    Raises:
        ValueError: If an index is out of range or given twice, or a class is left out.
    """
    everything = list(range(count))
    for name, given in (('base_class', base_class), ('novel_class', novel_class)):
        wrong = [i for i in given or () if i not in everything]
        if wrong:
            raise ValueError(
                f'{name} holds {wrong[0]}, but the vocabulary has {count} names (0 to {count - 1}); '
                'set base_class and novel_class along with the vocabulary (None: all are seen)'
            )
    if base_class is None:
        base_class = [i for i in everything if i not in (novel_class or ())]
    if novel_class is None:
        novel_class = [i for i in everything if i not in base_class]
    if sorted([*base_class, *novel_class]) != everything:
        twice = sorted(set(base_class) & set(novel_class))
        absent = sorted(set(everything) - {*base_class, *novel_class})
        raise ValueError(
            f'base_class and novel_class must name each of the {count} classes once: '
            f'{twice or "none"} are in both, {absent or "none"} in neither'
        )
    if both_class is not None and list(both_class) != everything:
        raise ValueError(
            f'both_class must be 0 to {count - 1}, all names of the vocabulary in order; leave it out'
        )
    return list(base_class), everything


def check_vocabulary(names: Sequence[str]) -> List[str]:
    """Return the names of the classes.

    Raises:
        ValueError: If there are none, or one is empty, or the same as another.
    """
    if not isinstance(names, (list, tuple)) or not names:
        raise ValueError(f'vocabulary must be a list of class names, got {names!r}')
    empty = [i for i, name in enumerate(names) if not str(name).strip()]
    if empty:
        raise ValueError(f'vocabulary has an empty name at {empty[0]}: {list(names)}')
    seen = set()
    for name in names:
        key = str(name).strip().lower()
        if key in seen:
            raise ValueError(f'vocabulary names {name!r} twice: each class needs a name of its own')
        seen.add(key)
    return list(names)


def class_colours(count: int) -> List[List[int]]:
    """Colours that differ, (R, G, B) from 0 to 255."""
    golden = (3 - 5**0.5) / 2  # of a turn: no two hues among the first so many are close
    return [
        [round(255 * v) for v in colorsys.hsv_to_rgb(i * golden % 1, 0.6 + 0.4 * (i % 2), 0.92)]
        for i in range(count)
    ]


@MODELS.register_module()
class TagCLIP(EncoderDecoder):
    """Zero-shot segmentor: CLIP with visual prompts, and a head over text queries.

    Only prompts and head are trained. The text embeddings are computed once, when they are first
    needed, and again after weights were loaded into the text encoder.

    Args:
        backbone (dict): ``VPTCLIPVisionTransformer``, or what else gives maps and image embeddings.
        decode_head (dict): ``TagCLIPHead``. It gets ``seen_idx`` and ``all_idx`` from here.
        text_encoder (dict, optional): mmseg's ``CLIPTextEncoder`` with a ``vocabulary`` or a
            ``dataset_name``, in mmseg's scope unless another is named. It is frozen. The temperature
            that its output carries is taken out again. Defaults to None.
        text_embedding (str, optional): In place of a text encoder, a ``.npy`` file of (C, D), of any
            precision. Defaults to None.
        base_class, novel_class, both_class (Sequence[int], optional): Seen, unseen and all classes as
            indices into the vocabulary. What is left out follows from the rest; without any, all
            classes are seen. Like the vocabulary they may differ between training and test.
        train_cfg (dict, optional): As in mmseg. Defaults to None.
        test_cfg (dict, optional): As in mmseg (``mode='slide'``, ``crop_size``, ``stride``), and
            ``window_batch``, the windows that go through the model at a time (default 4).
        data_preprocessor (dict, optional): As in mmseg. Defaults to None.
        pretrained (None): mmseg's ``init_model`` sets it; use ``init_cfg``. Defaults to None.
        init_cfg (dict, optional): ``dict(type='mmextra.OfficialCheckpoint', checkpoint=PATH)``: OpenAI's
            CLIP, a state dict or a TorchScript archive, for both towers; or the authors' TagCLIP.
            Defaults to None.

    Raises:
        ValueError: If there is no text side or there are two, if the vocabulary has an empty name or
            one twice, or if the split does not fit it.
    """

    official_layout = 'tagclip'

    def __init__(
        self,
        backbone: dict,
        decode_head: dict,
        text_encoder: Optional[dict] = None,
        text_embedding: Optional[str] = None,
        base_class: Optional[Sequence[int]] = None,
        novel_class: Optional[Sequence[int]] = None,
        both_class: Optional[Sequence[int]] = None,
        train_cfg: Optional[dict] = None,
        test_cfg: Optional[dict] = None,
        data_preprocessor: Union[dict, nn.Module, None] = None,
        pretrained: Optional[str] = None,
        init_cfg: Optional[dict] = None,
    ) -> None:
        if pretrained is not None:
            raise ValueError('pretrained is not supported: name the checkpoint in init_cfg')
        if (text_encoder is None) == (text_embedding is None):
            raise ValueError('give either text_encoder or text_embedding, the text side')
        encoder, stored, names = None, None, None
        if text_embedding is None:
            encoder, names = self._build_encoder(text_encoder)
            count = len(names)
        else:
            stored = self._read_embedding(text_embedding, decode_head['in_channels'])
            count = len(stored)
        seen, everything = class_split(count, base_class, novel_class, both_class)
        for name, indices in (('seen_idx', seen), ('all_idx', everything)):
            if decode_head.get(name) is not None and list(decode_head[name]) != indices:
                raise ValueError(
                    f'decode_head.{name} is {list(decode_head[name])}, but the split of the segmentor '
                    f'gives {indices}; leave it out of decode_head'
                )
        super().__init__(
            backbone=backbone,
            decode_head=dict(decode_head, seen_idx=seen, all_idx=everything),
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        self.class_names = names
        self.text_encoder = encoder
        self.register_buffer('_stored_text', stored, persistent=False)
        self._text: Optional[Tensor] = None
        if encoder is not None:
            encoder.eval().requires_grad_(False)
            encoder._register_load_state_dict_pre_hook(self._forget_text)

    @staticmethod
    def _build_encoder(cfg: dict) -> tuple:
        """The text encoder, and the names of its classes."""
        if cfg.get('vocabulary') is not None:
            check_vocabulary(cfg['vocabulary'])
        encoder = MMSEG_MODELS.build(dict(cfg, _scope_=cfg.get('_scope_', 'mmseg')))
        if hasattr(encoder, 'cache_feature'):
            encoder.cache_feature = False  # it would outlive the weights; here is one that does not
        if isinstance(encoder, CLIPTextEncoder):
            # mmseg leaves these two to what happens to be in memory; CLIP draws them so.
            nn.init.normal_(encoder.positional_embedding, std=0.01)
            nn.init.normal_(encoder.text_projection, std=len(encoder.text_projection) ** -0.5)
        names = encoder.vocabulary
        if names is None:
            names = get_classes(encoder.dataset_name)
            names = names[1:] if names[0] == 'background' else names  # as the encoder does
        return encoder, tuple(names)

    @staticmethod
    def _read_embedding(path: str, channels: int) -> Tensor:
        (rows,) = read_arrays(path)
        if rows.ndim != 2 or rows.shape[1] != channels or not len(rows) or rows.dtype.kind == 'U':
            raise ValueError(
                f'text_embedding {path} holds {rows.dtype} {rows.shape}, expected (classes, {channels})'
            )
        rows = torch.from_numpy(rows).float()
        if not torch.isfinite(rows).all() or (rows.norm(dim=1) == 0).any():
            raise ValueError(f'text_embedding {path} has rows that are zero or not finite')
        return rows

    def init_weights(self) -> None:
        """Initialise the parts, then load what ``init_cfg`` names; do nothing after a checkpoint."""
        if self.is_init:
            return
        encoder = self.text_encoder
        if is_checkpoint_init(getattr(encoder, 'init_cfg', None)):
            load_clip(encoder, checkpoint_of(encoder.init_cfg), 'text_encoder')
            encoder._is_init = True
        init_cfg = self.init_cfg
        if not is_checkpoint_init(init_cfg):
            super().init_weights()
            return
        self.init_cfg = None  # the parts first: prompts and head are not in CLIP's file
        super().init_weights()
        self.init_cfg = init_cfg
        load_clip(self, checkpoint_of(init_cfg))

    def train(self, mode: bool = True) -> 'TagCLIP':
        """Set the mode; the text encoder, which is frozen, stays in eval mode."""
        super().train(mode)
        if self.text_encoder is not None:
            self.text_encoder.eval()
        return self

    @property
    def dataset_meta(self) -> dict:
        """Names and colours of the classes, for pictures; mmseg sets it from the checkpoint's meta.

        The model's own vocabulary replaces the one that the checkpoint was trained with.
        """
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, meta: dict) -> None:
        names = self.class_names
        if names is not None and tuple(meta.get('classes') or ()) != names:
            meta = dict(meta, classes=names, palette=class_colours(len(names)))
        self._dataset_meta = meta

    def _forget_text(self, *args) -> None:
        self._text = None

    @torch.no_grad()
    def text_embeddings(self) -> Tensor:
        """Embeddings of all classes, (C, D), each of length 1."""
        device = next(self.decode_head.parameters()).device
        if self._text is None:
            with torch.autocast(device.type, enabled=False):  # they stay, whatever runs first
                rows = self._stored_text if self.text_encoder is None else self.text_encoder()
            self._text = F.normalize(at_least_float32(rows), dim=-1)
        self._text = self._text.to(device)
        return self._text

    def extract_feat(self, inputs: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Features for the head.

        Args:
            inputs (Tensor): Images (B, 3, H, W).

        Returns:
            tuple: Map (B, D, h, w) and embedding (B, D) of the images, and the text embeddings: in
                training those of the seen classes, in their order, unless it is self-training; else
                of all.
        """
        maps, image = self.backbone(inputs)
        text = self.text_embeddings()
        if self.training and not self.decode_head.self_training:
            text = text[self.decode_head.seen_idx]
        return maps[-1], image, text

    def loss(self, inputs: Tensor, data_samples: SampleList) -> dict:
        """Losses of a batch; images (B, 3, H, W) are padded to whole patches, which the losses ignore."""
        padding = self._padding(inputs)
        if any(padding):
            inputs = F.pad(inputs, padding)
            value = self.decode_head.pad_index
            data_samples = [sample.clone() for sample in data_samples]
            for sample in data_samples:
                label = F.pad(sample.gt_sem_seg.data, padding, value=value)
                sample.set_data(dict(gt_sem_seg=PixelData(data=label)))
        return super().loss(inputs, data_samples)

    def _padding(self, inputs: Tensor) -> Tuple[int, int, int, int]:
        """Pixels to add at the left, right, top and bottom of images, for whole patches."""
        height, width = inputs.shape[-2:]
        patch = self.backbone.patch_size
        return 0, -width % patch, 0, -height % patch

    def encode_decode(self, inputs: Tensor, batch_img_metas: List[dict]) -> Tensor:
        """Scores (B, C, H, W) of images of one size."""
        return self.encode_decode_trusty(inputs)[:, : self.out_channels]

    def encode_decode_trusty(self, inputs: Tensor) -> Tensor:
        """Scores of images and, behind them, their trusty map where there is a token.

        Images (B, 3, H, W) are padded to whole patches, and what is made of the padding is cut off.

        Returns:
            Tensor: (B, C + 1, H, W), or (B, C, H, W).
        """
        height, width = inputs.shape[-2:]
        padded = F.pad(inputs, self._padding(inputs))
        metas = [dict(img_shape=padded.shape[-2:])]
        scores, trusty = self.decode_head.predict_with_trusty(self.extract_feat(padded), metas)
        if trusty is not None:
            scores = torch.cat((scores, trusty), 1)
        return scores[..., :height, :width]

    def whole_inference(self, inputs: Tensor, batch_img_metas: List[dict]) -> Tensor:
        """Scores, and trusty map, of whole images."""
        return self.encode_decode_trusty(inputs)

    def slide_inference(self, inputs: Tensor, batch_img_metas: List[dict]) -> Tensor:
        """Scores, and trusty map, averaged over the windows that see a pixel.

        The windows are those of mmseg; several go through the model together. An image smaller than
        a window is one by itself.
        """
        size = inputs.shape[-2:]
        places = [
            (slice(y, y + self.test_cfg.crop_size[0]), slice(x, x + self.test_cfg.crop_size[1]))
            for y in _starts(size[0], self.test_cfg.crop_size[0], self.test_cfg.stride[0])
            for x in _starts(size[1], self.test_cfg.crop_size[1], self.test_cfg.stride[1])
        ]
        together = max(1, self.test_cfg.get('window_batch', 4) // len(inputs))
        total = None
        count = inputs.new_zeros(size)
        for first in range(0, len(places), together):
            group = places[first : first + together]
            scores = self.encode_decode_trusty(torch.cat([inputs[:, :, y, x] for y, x in group]))
            if total is None:
                total = inputs.new_zeros((len(inputs), scores.shape[1], *size))
            for (y, x), window in zip(group, scores.split(len(inputs))):
                total[:, :, y, x] += window
                count[y, x] += 1
        return total / count

    def postprocess_result(self, seg_logits: Tensor, data_samples: Optional[list] = None) -> list:
        """Make data samples of scores (N, C, H, W), with the trusty map (N, C + 1, H, W) if it is there.

        Returns:
            list[SegDataSample]: As in mmseg, in the size of the original images; and ``trusty_map``,
                (1, H, W), the probability that a pixel is of a novel class.
        """
        has_trusty = seg_logits.shape[1] > self.out_channels
        if not has_trusty:  # a lone channel, that of one class, would be taken for a binary logit
            seg_logits = torch.cat((seg_logits, torch.zeros_like(seg_logits[:, :1])), 1)
        samples = super().postprocess_result(seg_logits, data_samples)
        for sample in samples:
            scores, trusty = sample.seg_logits.data.tensor_split([self.out_channels])
            sample.set_data(
                dict(
                    seg_logits=PixelData(data=scores),
                    pred_sem_seg=PixelData(data=scores.argmax(0, keepdim=True)),
                )
            )
            if has_trusty:
                sample.set_data(dict(trusty_map=PixelData(data=trusty)))
        return samples


def _starts(size: int, window: int, stride: int) -> List[int]:
    """Where the windows over ``size`` pixels begin; the last ends with the image."""
    last = max(size - window, 0)
    return [*range(0, last, stride), last]
