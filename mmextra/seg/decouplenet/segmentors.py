"""The two training phases of DecoupleNet, as segmentors."""

import json
from abc import abstractmethod
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.structures import PixelData
from mmseg.models import EncoderDecoder
from mmseg.models.utils import resize
from mmseg.registry import MODELS as MMSEG_MODELS
from mmseg.utils import SampleList, add_prefix
from torch import Tensor, nn

from mmextra.engine.checkpoint import StateDict, is_checkpoint_init
from mmextra.ops.precision import at_least_float32
from mmextra.registry import MODELS
from mmextra.seg.decouplenet.optim import accumulate, finish
from mmextra.seg.decouplenet.pseudo_labels import (
    ConfidenceBank,
    confident_labels,
    follow_geometry,
    masked_cross_entropy,
)

Losses = Dict[str, Tensor]
SOURCE, TARGET = 0.0, 1.0  # how the discriminators are asked to call the domains


def domain_loss(scores: Tensor, domain: float) -> Tensor:
    """Least-squares adversarial loss: mean square distance of the scores from a domain's number."""
    return (at_least_float32(scores) - domain).square().mean()


class StepwiseSegmentor(EncoderDecoder):
    """A segmentor whose iteration has several backward passes, so that one graph is held at a time.

    Subclasses write the iteration as :meth:`steps`. Automatic mixed precision and gradient accumulation are the
    optimizer wrappers', as usual; under several processes the runner needs
    ``model_wrapper_cfg=dict(type='mmextra.StepwiseDataParallel')``.

    Args:
        **kwargs: Arguments of mmseg's ``EncoderDecoder``.

    Raises:
        ValueError: If the head has no channel of its own for each class.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        if self.out_channels != self.num_classes:
            raise ValueError(
                f'{type(self).__name__} compares the probabilities of classes, each of which needs a channel: '
                f'decode_head.out_channels is {self.out_channels} for {self.num_classes} classes, leave it out'
            )

    @abstractmethod
    def steps(
        self, inputs: Dict[str, Tensor], data_samples: Dict[str, SampleList]
    ) -> Iterator[Tuple[str, Losses]]:
        """Yield, one after the other, the name of an optimizer wrapper and losses to back-propagate for it.

        The network's own is called ``'generator'``.

        Args:
            inputs (dict): Domain -> images (B, 3, H, W).
            data_samples (dict): Domain -> data samples.
        """

    def loss(self, inputs: Dict[str, Tensor], data_samples: Dict[str, SampleList]) -> Losses:
        """All losses of an iteration, without any backward pass between them.

        Args:
            inputs (dict): Domain -> images (B, 3, H, W).
            data_samples (dict): Domain -> data samples.

        Returns:
            dict: Losses, and figures about the pseudo labels.
        """
        return {k: v for _, losses in self.steps(inputs, data_samples) for k, v in losses.items()}

    def train_step(self, data: dict, optim_wrapper: OptimWrapper) -> Losses:
        """One iteration: backward after every step, then all optimizers.

        Args:
            data (dict): A batch of :class:`DomainPairDataset`.
            optim_wrapper (OptimWrapper or OptimWrapperDict): The optimizer, or those that the steps name.

        Returns:
            dict: What is logged.
        """
        several = isinstance(optim_wrapper, OptimWrapperDict)
        first = optim_wrapper['generator'] if several else optim_wrapper
        with first.optim_context(self):
            data = self.data_preprocessor(data, True)
        steps, used, logs = self.steps(**data), {}, {}
        while True:
            with first.optim_context(self):
                name, losses = next(steps, (None, None))
            if name is None:
                break
            used[name] = optim_wrapper[name] if several else optim_wrapper
            loss, log = self.parse_losses(losses)
            accumulate(used[name], loss)
            key = 'loss' if used[name] is first else f'loss_{name}'
            total = logs.get(key, 0) + log.pop('loss').detach()
            logs.update({k: v.detach() for k, v in log.items()}, **{key: total})
        for wrapper in dict.fromkeys(used.values()):
            finish(wrapper)
        return logs

    def upsample(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """Bilinear resize (B, C, h, w) to (B, C, H, W) of that size."""
        return resize(maps, size=tuple(size), mode='bilinear', align_corners=self.align_corners)


@MODELS.register_module()
class DecoupleNet(StepwiseSegmentor):
    """Phase 1: decoupled feature alignment and self-discrimination.

    The shallow layers exist twice. ``source_shallow`` is trained to make features of source images look like
    those of target images, and is dropped afterwards; the backbone's own shallow layers see target images alone.
    Backbone and decode head are an ordinary ``EncoderDecoder``: its test config reads the checkpoint.

    The source copy starts from the backbone's weights, also when a checkpoint without it (one that was trained on
    source images alone) is loaded. Train such a checkpoint with a stock ``EncoderDecoder``: without adversarial
    and self-discrimination losses nothing would reach the target's shallow layers here.

    Args:
        backbone (dict): A ``ResNet`` of mmseg, with output stride 8 in the paper.
        decode_head (dict): An :class:`ASPPSumHead`, with ``aux_classifier=True`` for self-discrimination.
        feat_discriminator (dict, optional): For features after ``split_after``, at image size. Needed unless
            ``adv_src`` is 0. Defaults to None.
        out_discriminator (dict, optional): For class probabilities. Needed unless ``adv_tgt`` is 0. Defaults to
            None.
        split_after (str): The last of the shallow layers: ``'stem'``, ``'layer1'``, ``'layer2'``, ... Defaults to
            ``'layer1'``.
        decouple (bool): Whether the source has shallow layers of its own. Without them, features are aligned in
            the plain way. Defaults to True.
        adapt_cfg (dict, optional): Overrides of the published ``temperature=1.8`` of class probabilities,
            loss weights ``adv_src=0.1``, ``adv_tgt=0.01``, ``st=0.1`` (self-discrimination), ``keep=0.8`` (part
            of each class's pixels that become pseudo labels) and ``bank=100000`` (confidences kept for each
            class). A weight of 0 leaves the term out. Defaults to None.
        test_cfg (dict): As the host's; ``mode='logits'`` makes :meth:`predict` return logits at the network's own
            resolution, for :class:`SoftLabelDumper`. Defaults to ``dict(mode='whole')``.
        **kwargs: Further arguments of mmseg's ``EncoderDecoder``.

    Raises:
        ValueError: If an option is unknown or out of range, or if a part that a weight asks for is missing.

    Example:
        >>> model = dict(
        ...     type='mmextra.DecoupleNet',
        ...     backbone=dict(type='ResNet', depth=101, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4),
        ...                   contract_dilation=True),
        ...     decode_head=dict(type='mmextra.ASPPSumHead', in_channels=2048, in_index=3, channels=128,
        ...                      num_classes=19, aux_classifier=True),
        ...     feat_discriminator=dict(type='mmextra.FCDiscriminator', in_channels=256, base_channels=32),
        ...     out_discriminator=dict(type='mmextra.FCDiscriminator', in_channels=19, base_channels=64),
        ... )
    """

    official_layout = 'decouplenet'
    DEFAULTS = dict(temperature=1.8, adv_src=0.1, adv_tgt=0.01, st=0.1, keep=0.8, bank=100000)

    def __init__(
        self,
        backbone: dict,
        decode_head: dict,
        feat_discriminator: Optional[dict] = None,
        out_discriminator: Optional[dict] = None,
        split_after: str = 'layer1',
        decouple: bool = True,
        adapt_cfg: Optional[dict] = None,
        test_cfg: dict = dict(mode='whole'),
        **kwargs,
    ) -> None:
        super().__init__(
            backbone=backbone, decode_head=decode_head, test_cfg=ConfigDict(test_cfg), **kwargs
        )
        unknown = sorted({*(adapt_cfg or {})} - {*self.DEFAULTS})
        if unknown:
            raise ValueError(
                f'adapt_cfg knows {", ".join(self.DEFAULTS)}; got {", ".join(unknown)}'
            )
        options = {**self.DEFAULTS, **(adapt_cfg or {})}
        if options['temperature'] <= 0:
            raise ValueError(f'temperature must be positive, got {options["temperature"]}')
        if not hasattr(self.backbone, 'res_layers'):
            raise ValueError(
                f'backbone must be a ResNet, which can be split after a stage; got {type(self.backbone).__name__}'
            )
        if not hasattr(self.decode_head, 'forward_hidden'):
            raise ValueError(
                f'decode_head must be a mmextra.ASPPSumHead, got {type(self.decode_head).__name__}'
            )
        self.temperature = options['temperature']
        self.adv_src, self.adv_tgt, self.st = (options[k] for k in ('adv_src', 'adv_tgt', 'st'))
        for weight, name, part in (
            (self.adv_src, 'adv_src', feat_discriminator),
            (self.adv_tgt, 'adv_tgt', out_discriminator),
            (self.st, 'st', getattr(self.decode_head, 'conv_aux', None)),
        ):
            needed = dict(
                adv_src='feat_discriminator',
                adv_tgt='out_discriminator',
                st='a decode head with aux_classifier=True',
            )[name]
            if weight < 0 or (weight and part is None):
                raise ValueError(
                    f'adapt_cfg.{name} is {weight}: it must be 0, or positive together with {needed}'
                )
        self.feat_discriminator = feat_discriminator and MMSEG_MODELS.build(feat_discriminator)
        self.out_discriminator = out_discriminator and MMSEG_MODELS.build(out_discriminator)
        self.bank = ConfidenceBank(self.num_classes, options['keep'], options['bank'])

        # The layers of the backbone in the order in which images pass them.
        deep = self.backbone.deep_stem
        stem = ['stem'] if deep else ['conv1', self.backbone.norm1_name, 'relu']
        self.layers = [*stem, 'maxpool', *self.backbone.res_layers]
        self.split = 'maxpool' if split_after == 'stem' else split_after
        if self.split not in self.layers[len(stem) : -1]:
            raise ValueError(
                f'split_after must be stem or one of {", ".join(self.backbone.res_layers[:-1])}, '
                f'got {split_after!r}'
            )
        shallow = self.layers[: self.layers.index(self.split) + 1]
        self.source_shallow = (
            nn.ModuleDict({name: deepcopy(getattr(self.backbone, name)) for name in shallow})
            if decouple
            else None
        )
        self._register_load_state_dict_pre_hook(self._complete)

    def _complete(self, state: StateDict, prefix: str, *args) -> None:
        """Let the source's copy start from the backbone, where a checkpoint holds that alone."""
        if self.source_shallow is None or any(
            k.startswith(f'{prefix}source_shallow.') for k in state
        ):
            return
        for key in self.source_shallow.state_dict():
            if f'{prefix}backbone.{key}' in state:
                state[f'{prefix}source_shallow.{key}'] = state[f'{prefix}backbone.{key}'].clone()

    def init_weights(self) -> None:
        """Initialise, both copies of the shallow layers alike, unless a checkpoint holds them."""
        fresh = not (self.is_init or is_checkpoint_init(self.init_cfg))
        super().init_weights()
        if fresh and self.source_shallow is not None:
            shared = self.backbone.state_dict()
            self.source_shallow.load_state_dict(
                {k: shared[k] for k in self.source_shallow.state_dict()}
            )

    def train(self, mode: bool = True) -> nn.Module:
        """Switch the mode; the source's copy follows the backbone where that freezes stages or normalisation."""
        super().train(mode)
        if self.source_shallow is not None:
            for name, copy in self.source_shallow.items():
                for own, other in zip(copy.modules(), getattr(self.backbone, name).modules()):
                    own.training = other.training
        return self

    def domain_features(self, images: Tensor, source: bool) -> Tuple[Tensor, List[Tensor]]:
        """Run the backbone, for source images with their own shallow layers.

        Args:
            images (Tensor): (B, 3, H, W).
            source (bool): Whether they are of the source domain.

        Returns:
            tuple: The features after the shallow layers, and what ``extract_feat`` returns.
        """
        own = self.source_shallow if source and self.source_shallow is not None else {}
        x, shallow, outs = images, None, []
        for name in self.layers:
            x = (own[name] if name in own else getattr(self.backbone, name))(x)
            if name == self.split:
                shallow = x
            if name in self.backbone.res_layers:
                outs.append(x)
        outs = [out for i, out in enumerate(outs) if i in self.backbone.out_indices]
        return shallow, self.neck(outs) if self.with_neck else outs

    def source_losses(self, shallow: Tensor, logits: Tensor, data_samples: SampleList) -> Losses:
        """Segmentation of source images, and source features that should look like target features.

        Args:
            shallow (Tensor): (B, C, h', w').
            logits (Tensor): (B, num_classes, h, w), before the temperature.
            data_samples (list): With labels.
        """
        losses = self.decode_head.loss_by_feat(logits / self.temperature, data_samples)
        losses = add_prefix(losses, 'decode')
        if self.adv_src:
            size = data_samples[0].gt_sem_seg.shape
            scores = self.feat_discriminator(self.upsample(shallow, size))
            losses['loss_adv_src'] = self.adv_src * domain_loss(scores, TARGET)
        return losses

    def target_losses(
        self, hidden: Tensor, size: Sequence[int], valid: Optional[Tensor] = None
    ) -> Tuple[Losses, Tensor]:
        """Self-discrimination, and target predictions that should look like source predictions.

        Args:
            hidden (Tensor): Hidden features of the head, (B, channels, h, w).
            size (Sequence[int]): Height and width of the images.
            valid (Tensor, optional): (B, h, w), false where images were padded. Defaults to None.

        Returns:
            tuple: The losses with figures about the pseudo labels, and the logits (B, num_classes, h, w).
        """
        logits = self.decode_head.cls_seg(hidden)
        losses = {}
        if self.st:
            labels, losses = self.pseudo_labels(logits, valid)
            aux = self.decode_head.forward_aux(hidden)
            losses['loss_st'] = self.st * masked_cross_entropy(
                aux, labels, self.decode_head.ignore_index
            )
        if self.adv_tgt:
            scores = self.out_discriminator(self.probabilities(logits, size))
            losses['loss_adv_tgt'] = self.adv_tgt * domain_loss(scores, SOURCE)
        return losses, logits

    @torch.no_grad()
    def pseudo_labels(
        self, logits: Tensor, valid: Optional[Tensor] = None
    ) -> Tuple[Tensor, Losses]:
        """Labels of the confident pixels, from thresholds that follow the confidences of each class.

        Args:
            logits (Tensor): Of the main classifier, (B, num_classes, h, w).
            valid (Tensor, optional): (B, h, w). Defaults to None, all of it.

        Returns:
            tuple: Labels (B, h, w), and figures for the log: the part of the pixels that is kept, the mean
            confidence, the number of classes that are predicted, the mean threshold over these.
        """
        confidence, classes = at_least_float32(logits).softmax(1).max(1)
        if valid is None:
            seen = confidence.flatten(), classes.flatten()
        else:
            valid = valid.to(logits.device)
            seen = confidence[valid], classes[valid]
        thresholds = self.bank.update(*seen)
        ignore_index = self.decode_head.ignore_index
        labels = confident_labels(confidence, classes, thresholds, ignore_index)
        if valid is not None:
            labels = labels.masked_fill(~valid, ignore_index)
        found = seen[1].unique()
        return labels, dict(
            pseudo_kept=(labels != ignore_index).sum() / max(len(seen[0]), 1),
            pseudo_confidence=seen[0].mean(),
            pseudo_classes=torch.tensor(float(len(found))),
            pseudo_threshold=thresholds[found].mean(),
        )

    def probabilities(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Class probabilities at image size, (B, num_classes, H, W)."""
        return (self.upsample(logits, size) / self.temperature).softmax(1)

    def discriminator_losses(self, source: 'Seen', target: 'Seen') -> Iterator[Tuple[str, Losses]]:
        """Yield, for each discriminator in use, its name and its losses on source and target.

        Args:
            source, target (Seen): What is left of the two passes.
        """
        pairs = dict(
            feat_discriminator=[
                (lambda seen: self.upsample(seen.shallow, seen.size)),
                self.adv_src,
            ],
            out_discriminator=[
                (lambda seen: self.probabilities(seen.logits, seen.size)),
                self.adv_tgt,
            ],
        )
        for name, (judged, weight) in pairs.items():
            if weight:
                discriminator = getattr(self, name)
                yield (
                    name,
                    {
                        f'loss_{name}_src': 0.5
                        * domain_loss(discriminator(judged(source)), SOURCE),
                        f'loss_{name}_tgt': 0.5
                        * domain_loss(discriminator(judged(target)), TARGET),
                    },
                )

    @contextmanager
    def frozen_discriminators(self) -> Iterator[None]:
        """Graphs that are built inside lead through the discriminators, but not to their parameters."""
        discriminators = (self.feat_discriminator, self.out_discriminator)
        learning = [
            p for d in discriminators if d is not None for p in d.parameters() if p.requires_grad
        ]
        try:
            for parameter in learning:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)

    def source_pass(self, images: Tensor, data_samples: SampleList) -> Tuple[Losses, 'Seen']:
        """The losses of source images, and what the discriminators will need of them."""
        with self.frozen_discriminators():
            shallow, features = self.domain_features(images, source=True)
            logits = self.decode_head(features)
            losses = self.source_losses(shallow, logits, data_samples)
            if self.with_auxiliary_head:
                losses.update(self._auxiliary_head_forward_train(features, data_samples))
        return losses, Seen(shallow.detach(), logits.detach(), images.shape[-2:])

    def target_pass(self, images: Tensor, data_samples: SampleList) -> Tuple[Losses, 'Seen']:
        """The losses of target images, and what the discriminators will need of them."""
        size = images.shape[-2:]
        with self.frozen_discriminators():
            shallow, features = self.domain_features(images, source=False)
            hidden = self.decode_head.forward_hidden(features)
            valid = unpadded_cells(data_samples, size, hidden.shape[-2:])
            losses, logits = self.target_losses(hidden, size, valid)
        return losses, Seen(shallow.detach(), logits.detach(), size)

    def steps(
        self, inputs: Dict[str, Tensor], data_samples: Dict[str, SampleList]
    ) -> Iterator[Tuple[str, Losses]]:
        """An iteration of phase 1: source, target, discriminators."""
        losses, source = self.source_pass(inputs['source'], data_samples['source'])
        yield 'generator', losses
        learns = bool(self.adv_tgt or self.st)
        if not (learns or self.adv_src):
            return
        # The discriminator of features needs those of the target also where nothing learns from them.
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            losses, target = self.target_pass(inputs['target'], data_samples['target'])
        if learns:
            yield 'generator', losses
        yield from self.discriminator_losses(source, target)

    def train_step(self, data: dict, optim_wrapper: OptimWrapperDict) -> Losses:
        """One iteration.

        Raises:
            ValueError: If an optimizer is missing.
        """
        needed = ['generator']
        needed += ['feat_discriminator'] * bool(self.adv_src)
        needed += ['out_discriminator'] * bool(self.adv_tgt)
        has = list(optim_wrapper.keys()) if isinstance(optim_wrapper, OptimWrapperDict) else ['one']
        if not {*needed} <= {*has}:
            raise ValueError(
                'DecoupleNet needs optim_wrapper=dict(constructor="mmextra.MultiOptimWrapperConstructor", ...) '
                f'with {", ".join(needed)}; got {", ".join(has)}'
            )
        return super().train_step(data, optim_wrapper)

    def predict(self, inputs: Tensor, data_samples: Optional[SampleList] = None) -> SampleList:
        """As the host; with ``test_cfg.mode='logits'`` samples get ``seg_logits`` at the network's resolution."""
        if self.test_cfg.get('mode') != 'logits':
            return super().predict(inputs, data_samples)
        for sample, logits in zip(data_samples, self._forward(inputs)):
            sample.seg_logits = PixelData(data=logits)
        return data_samples


class Seen(NamedTuple):
    """What the discriminators learn from: shallow features and logits of a batch, detached, and the images' size."""

    shallow: Tensor
    logits: Tensor
    size: Sequence[int]


def unpadded_cells(
    data_samples: SampleList, size: Sequence[int], cells: Sequence[int]
) -> Optional[Tensor]:
    """Which cells of a feature map lie within the images, not in their padding.

    Args:
        data_samples (list): With ``padding_size`` (left, right, top, bottom) as the preprocessor writes it.
        size (Sequence[int]): Height and width of the padded images.
        cells (Sequence[int]): Height and width of the feature map, corners aligned.

    Returns:
        Tensor, optional: (B, h, w), or None if nothing was padded.
    """
    paddings = [sample.metainfo.get('padding_size', (0, 0, 0, 0)) for sample in data_samples]
    if not any(any(padding) for padding in paddings):
        return None
    rows, columns = (torch.linspace(0, size[i] - 1, cells[i]) for i in (0, 1))
    inside = [
        (rows < size[0] - bottom)[:, None] & (columns < size[1] - right)[None]
        for _, right, _, bottom in paddings
    ]
    return torch.stack(inside)


@MODELS.register_module()
class DecoupleSelfTraining(StepwiseSegmentor):
    """Phase 2: online enhanced self-training, from a checkpoint of phase 1.

    Target images are augmented. Their pseudo labels come from two sources, averaged as probabilities: the soft
    labels that :class:`SoftLabelDumper` stored with the model of phase 1, and what the network, as it is now,
    predicts for the whole image without augmentation.

    Samples of the target need ``full_img``, ``geometry`` and ``soft_label`` in their meta information, see
    :class:`TrackedRandomSizedCrop` and :class:`LoadSoftLabel`.

    Args:
        thresholds (str or Sequence[float]): Confidence below which a class's pixels are ignored: a file
            ``thresholds.json`` of :class:`SoftLabelDumper`, read when training starts, or one number for each
            class.
        **kwargs: Arguments of mmseg's ``EncoderDecoder``.

    Example:
        >>> model = dict(
        ...     type='mmextra.DecoupleSelfTraining', backbone=..., decode_head=dict(type='mmextra.ASPPSumHead', ...),
        ...     thresholds='work_dirs/soft_labels/thresholds.json',
        ... )
    """

    official_layout = 'decouplenet'

    def __init__(self, thresholds: Union[str, Sequence[float]], **kwargs) -> None:
        super().__init__(**kwargs)
        self.threshold_source = thresholds
        self._thresholds = None

    @property
    def thresholds(self) -> Tensor:
        """The confidence that each class needs, (num_classes,).

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If there are not as many as classes.
        """
        if self._thresholds is None:
            source = self.threshold_source
            if isinstance(source, (str, Path)):
                if not Path(source).is_file():
                    raise FileNotFoundError(
                        f'there are no thresholds {source}: write soft labels and thresholds with the '
                        'model of phase 1, mmextra.SoftLabelDumper and tools/test.py first'
                    )
                try:
                    content = json.loads(Path(source).read_text())['thresholds']
                    values = torch.tensor([float(t) for t in content])
                except (ValueError, KeyError, TypeError, OverflowError) as error:
                    raise ValueError(f'{source} holds no thresholds: {error}') from error
            else:
                values = torch.tensor([float(t) for t in source])
            if len(values) != self.num_classes:
                raise ValueError(
                    f'thresholds are for {len(values)} classes, the model has {self.num_classes}: '
                    f'{source}'
                )
            if not values.isfinite().all():
                raise ValueError(f'thresholds must be finite: {source}')
            self._thresholds = values
        return self._thresholds

    @torch.no_grad()
    def whole_predictions(
        self, logits: Tensor, geometries: Sequence[dict], size: Sequence[int]
    ) -> List[Tensor]:
        """Probabilities for whole images, brought to the augmented crops.

        Args:
            logits (Tensor): Of whole images, (B, num_classes, h, w).
            geometries (Sequence[dict]): See :func:`follow_geometry`.
            size (Sequence[int]): Height and width of crops, to which the logits are resized first, as the
                authors do.

        Returns:
            list: For each image (num_classes, height, width) of its crop.
        """
        probabilities = self.upsample(at_least_float32(logits), size).softmax(1)
        return [follow_geometry(p, g) for p, g in zip(probabilities, geometries)]

    @torch.no_grad()
    def stored_predictions(self, data_samples: SampleList, device: torch.device) -> List[Tensor]:
        """Probabilities from the stored logits, brought to the augmented crops.

        Raises:
            ValueError: If the soft labels are of another number of classes.
        """
        probabilities = []
        for sample in data_samples:
            stored = torch.from_numpy(sample.metainfo['soft_label']).to(device)
            if len(stored) != self.num_classes:
                raise ValueError(
                    f'the soft label of {sample.metainfo.get("img_path")} has {len(stored)} classes, the '
                    f'model {self.num_classes}'
                )
            whole = sample.metainfo['full_img'].shape[:2]
            maps = follow_geometry(stored, sample.metainfo['geometry'], via=whole)
            probabilities.append(maps.softmax(0))
        return probabilities

    @torch.no_grad()
    def combine(
        self, online: Sequence[Tensor], stored: Sequence[Tensor], size: Sequence[int]
    ) -> Tuple[Tensor, Losses]:
        """Average two lists of probabilities, and keep the confident pixels.

        Args:
            online, stored (Sequence[Tensor]): (num_classes, height, width) for each image.
            size (Sequence[int]): Height and width of the batch; what is beyond a crop is ignored.

        Returns:
            tuple: Labels (B, H, W), and figures for the log.
        """
        ignore_index, labels, confidences = self.decode_head.ignore_index, [], []
        thresholds = self.thresholds.to(online[0])
        for p, q in zip(online, stored):
            confidence, classes = ((p + q) / 2).max(0)
            own = confident_labels(confidence, classes, thresholds, ignore_index)
            beyond = (0, size[1] - own.shape[1], 0, size[0] - own.shape[0])
            labels.append(F.pad(own, beyond, value=ignore_index))
            confidences.append(confidence.flatten())
        labels, confidences = torch.stack(labels), torch.cat(confidences)
        kept = labels != ignore_index
        return labels, dict(
            pseudo_kept=kept.sum() / len(confidences),
            pseudo_confidence=confidences.mean(),
            pseudo_classes=torch.tensor(float(len(labels[kept].unique()))),
        )

    def steps(
        self, inputs: Dict[str, Tensor], data_samples: Dict[str, SampleList]
    ) -> Iterator[Tuple[str, Losses]]:
        """An iteration of phase 2: source, then target.

        Raises:
            ValueError: If the target's samples lack what the pipeline has to keep.
        """
        targets, size = data_samples['target'], inputs['target'].shape[-2:]
        needed = ('full_img', 'geometry', 'soft_label')
        absent = [k for k in needed if not all(k in sample.metainfo for sample in targets)]
        if absent:
            raise ValueError(
                f'target samples lack {", ".join(absent)}: use mmextra.LoadSoftLabel and '
                'mmextra.TrackedRandomSizedCrop(keep_image=True), and name full_img, geometry and soft_label in '
                'meta_keys of PackSegInputs'
            )
        yield 'generator', EncoderDecoder.loss(self, inputs['source'], data_samples['source'])
        geometries = [sample.metainfo['geometry'] for sample in targets]
        with torch.no_grad():
            # In training mode: the whole images enter the running statistics, as published.
            whole = self._forward(inputs['full'])
        # Some versions of torch would hand the next pass weights that were cast without a graph.
        torch.clear_autocast_cache()
        online = self.whole_predictions(whole, geometries, size)
        stored = self.stored_predictions(targets, whole.device)
        labels, figures = self.combine(online, stored, size)
        logits = self.upsample(self._forward(inputs['target']), size)
        loss = masked_cross_entropy(logits, labels, self.decode_head.ignore_index)
        yield 'generator', dict(figures, loss_target=loss)
