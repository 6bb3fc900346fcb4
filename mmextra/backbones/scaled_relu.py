"""Scaled ReLU Matters for Training Vision Transformers. arXiv 2109.03810, AAAI 2022.

The patchify convolution of a vision transformer is replaced by three convolutions, each followed by a "scaled ReLU" (a
normalisation with a learned scale, then a ReLU), and a strided projection onto the same token grid.

Registered here: ``ScaledReLUConvStem``, which any stock backbone takes as ``patch_cfg=dict(conv_type=...)``, its
aliases with other settings (``ScaledReLUConvStem32``, ``...IBN``, ``...LN``, ``...CP``; ``ConvStem``, ``ConvBNStem``
and ``ConvReLUStem`` for the paper's ablation), ``ScaledReLUPatchEmbed``, the normalisation ``IBN``,
``StemDiversityHook`` and ``LossSpikeHook``.
"""

import math
from collections import deque
from contextlib import nullcontext
from typing import Deque, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmcv.cnn.bricks.transformer import PatchEmbed
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.utils import to_2tuple
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmextra.backbones.plain_vit import kept_statistics
from mmextra.engine.checkpoint import StateDict, register_layout
from mmextra.registry import HOOKS, MODELS

NormCfg = Optional[dict]


@MODELS.register_module()
class IBN(nn.Module):
    """Instance normalisation of the first half of the channels, batch normalisation of the rest.

    The variant of the stem that the same authors use for re-identification (TransReID-SSL).

    Args:
        num_features (int): Channels C.
        eps (float): Added to the variances. Defaults to 1e-5.
        momentum (float): Of the batch statistics. Defaults to 0.1.
    """

    _abbr_ = 'ibn'

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.split = [num_features // 2, num_features - num_features // 2]
        self.IN = nn.InstanceNorm2d(self.split[0], eps=eps, affine=True)
        self.BN = nn.BatchNorm2d(self.split[1], eps=eps, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` of shape (B, C, H, W)."""
        instance, batch = x.split(self.split, dim=1)
        return torch.cat((self.IN(instance), self.BN(batch)), dim=1)


@MODELS.register_module()
class ScaledReLUConvStem(nn.Module):
    """Convolutional stem with scaled ReLUs, in the place of a patchify convolution.

    Its first seven arguments are those of a convolution, so that stock backbones build it by name. The tokens are
    those of the patchify convolution: H/P x W/P for a patch size P. The projection has neither norm nor activation.

    Args:
        in_channels (int): Channels of the image.
        out_channels (int): Channels C of the tokens.
        kernel_size (int | tuple[int]): Patch size P.
        stride (int | tuple[int]): Must equal ``kernel_size``.
        padding (int | tuple[int]): Must be 0. Defaults to 0.
        dilation (int | tuple[int]): Must be 1. Defaults to 1.
        bias (bool): Whether the projection has a bias. Defaults to True.
        hidden (int): Channels D_s of the stem. Defaults to 64.
        norm_cfg (dict | None | Sequence): Normalisation after each convolution, or one for each of them. Convolutions
            without one have a bias instead. Defaults to ``dict(type='BN')``.
        act_cfg (dict, optional): Activation after each normalisation. Defaults to ``dict(type='ReLU', inplace=True)``.
        num_convs (int): Convolutions before the projection. Defaults to 3.
        stem_stride (int): Their joint stride. The projection takes the rest, P / stem_stride. Defaults to 2.
        kernel_sizes (Sequence[int], optional): Their kernel sizes, odd. Defaults to 7, then 3 for each one more.
        strides (Sequence[int], optional): Their strides. Defaults to ``stem_stride``, then 1 for each one more.
        with_cp (bool): Recompute the convolutions in the backward pass instead of keeping their maps, which dominate
            the memory of a small transformer. Running statistics are updated once all the same. Defaults to False.

    Raises:
        ValueError: If the patches overlap or are dilated, or the numbers do not fit together.

    Example:
        >>> model = dict(backbone=dict(patch_cfg=dict(conv_type='mmextra.ScaledReLUConvStem')))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Union[int, Tuple[int, int]],
        stride: Union[int, Tuple[int, int]],
        padding: Union[int, Tuple[int, int]] = 0,
        dilation: Union[int, Tuple[int, int]] = 1,
        bias: bool = True,
        hidden: int = 64,
        norm_cfg: Union[NormCfg, Sequence[NormCfg]] = dict(type='BN'),
        act_cfg: Optional[dict] = dict(type='ReLU', inplace=True),
        num_convs: int = 3,
        stem_stride: int = 2,
        kernel_sizes: Optional[Sequence[int]] = None,
        strides: Optional[Sequence[int]] = None,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        patch = to_2tuple(kernel_size)
        if to_2tuple(stride) != patch or any(to_2tuple(padding)) or to_2tuple(dilation) != (1, 1):
            raise ValueError(
                f'{type(self).__name__} makes patches that neither overlap nor leave gaps: stride must equal '
                f'kernel_size, padding be 0 and dilation 1; got kernel_size={kernel_size}, stride={stride}, '
                f'padding={padding}, dilation={dilation}'
            )
        if num_convs < 1:
            raise ValueError(
                f'num_convs must be at least 1, got {num_convs}; for none, use conv_type="Conv2d"'
            )
        kernel_sizes = kernel_sizes or (7, *[3] * (num_convs - 1))
        strides = strides or (stem_stride, *[1] * (num_convs - 1))
        norm_cfgs = (
            [norm_cfg] * num_convs if norm_cfg is None or isinstance(norm_cfg, dict) else norm_cfg
        )
        for name, given in (
            ('kernel_sizes', kernel_sizes),
            ('strides', strides),
            ('norm_cfg', norm_cfgs),
        ):
            if len(given) != num_convs:
                raise ValueError(
                    f'{name} has {len(given)} entries for num_convs={num_convs} convolutions: {given}'
                )
        if math.prod(strides) != stem_stride or any(side % stem_stride for side in patch):
            raise ValueError(
                f'strides {tuple(strides)} must multiply to stem_stride={stem_stride}, and that divide the patch '
                f'size {patch}, kernel_size'
            )
        if not all(k % 2 for k in kernel_sizes):
            raise ValueError(f'kernel_sizes must be odd, got {tuple(kernel_sizes)}')

        layers: List[nn.Module] = []
        for i, (k, s, norm) in enumerate(zip(kernel_sizes, strides, norm_cfgs)):
            channels = hidden if i else in_channels
            layers.append(nn.Conv2d(channels, hidden, k, s, k // 2, bias=norm is None))
            layers.append(build_norm_layer(norm, hidden)[1] if norm else nn.Identity())
            layers.append(build_activation_layer(act_cfg) if act_cfg else nn.Identity())
        # Named and numbered as in VOLO's patch embedding, whose stem this is.
        self.conv = nn.Sequential(*layers)
        rest = tuple(side // stem_stride for side in patch)
        self.proj = nn.Conv2d(hidden, out_channels, rest, rest, bias=bias)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """Embed images.

        Args:
            x (Tensor): (B, in_channels, H, W).

        Returns:
            Tensor: (B, C, H/P, W/P), in channels-last memory format: its tokens are contiguous.
        """
        x = x.contiguous(memory_format=torch.channels_last)  # the large maps convolve faster so
        if self.with_cp and self.training:
            x = checkpoint(self.conv, x, use_reentrant=False, context_fn=self._recompute_contexts)
        else:
            x = self.conv(x)  # (B, D_s, H/stem_stride, W/stem_stride)
        return self.proj(x)

    def train(self, mode: bool = True) -> 'ScaledReLUConvStem':
        """Set the mode. A frozen stem stays in eval mode, whichever way its host thaws the mode of its parts."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))

    def _recompute_contexts(self):
        return nullcontext(), kept_statistics(self.conv)


# Stock backbones name their patch convolution and pass it nothing but a convolution's arguments. Hence a name for each
# setting that the paper or the memory asks for; a class of one's own, written the same way, adds others.


@MODELS.register_module()
class ScaledReLUConvStem32(ScaledReLUConvStem):
    """The stem with 32 channels: a quarter of the multiply-adds of its 3x3 convolutions."""

    def __init__(self, *args, hidden: int = 32, **kwargs) -> None:
        super().__init__(*args, hidden=hidden, **kwargs)


@MODELS.register_module()
class ScaledReLUConvStemIBN(ScaledReLUConvStem):
    """The stem of TransReID-SSL: :class:`IBN` after the first two convolutions, BN after the third."""

    def __init__(self, *args, **kwargs) -> None:
        ibn = dict(type='mmextra.IBN')
        super().__init__(*args, norm_cfg=(ibn, ibn, dict(type='BN')), **kwargs)


@MODELS.register_module()
class ScaledReLUConvStemLN(ScaledReLUConvStem):
    """The stem with layer normalisation over the channels of each position, for small batches."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, norm_cfg=dict(type='mmpretrain.LN2d'), **kwargs)


@MODELS.register_module()
class ScaledReLUConvStemCP(ScaledReLUConvStem):
    """The stem, recomputed in the backward pass: less memory, the same result."""

    def __init__(self, *args, with_cp: bool = True, **kwargs) -> None:
        super().__init__(*args, with_cp=with_cp, **kwargs)


@MODELS.register_module()
class ConvStem(ScaledReLUConvStem):
    """Ablation: convolutions alone."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, norm_cfg=None, act_cfg=None, **kwargs)


@MODELS.register_module()
class ConvBNStem(ScaledReLUConvStem):
    """Ablation: convolutions and batch normalisation, no ReLU."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, act_cfg=None, **kwargs)


@MODELS.register_module()
class ConvReLUStem(ScaledReLUConvStem):
    """Ablation: convolutions and ReLU, no normalisation to scale it."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, norm_cfg=None, **kwargs)


@MODELS.register_module()
class ScaledReLUPatchEmbed(PatchEmbed):
    """Patch embedding with the stem, for backbones of one's own that build their patch embedding from a dict.

    Args:
        in_channels (int): Channels of the image. Defaults to 3.
        embed_dims (int): Channels of the tokens. Defaults to 768.
        kernel_size (int | tuple[int]): Patch size. Defaults to 16.
        stem_cfg (dict, optional): Further arguments of :class:`ScaledReLUConvStem`. Defaults to None.
        **kwargs: The other arguments of mmcv's ``PatchEmbed`` (``padding``, ``bias``, ``norm_cfg`` after the
            projection, ``input_size``, ``init_cfg``).
    """

    def __init__(
        self,
        in_channels: int = 3,
        embed_dims: int = 768,
        kernel_size: Union[int, Tuple[int, int]] = 16,
        stem_cfg: Optional[dict] = None,
        **kwargs,
    ) -> None:
        super().__init__(
            in_channels, embed_dims, kernel_size=kernel_size, stride=kernel_size, **kwargs
        )
        patchify = self.projection
        self.projection = ScaledReLUConvStem(
            in_channels,
            embed_dims,
            patchify.kernel_size,
            patchify.stride,
            patchify.padding,
            patchify.dilation,
            patchify.bias is not None,
            **(stem_cfg or {}),
        )


@HOOKS.register_module()
class StemDiversityHook(Hook):
    """Log how alike the patch tokens are after the stem, and how often the loss is not finite.

    Writes ``stem_similarity``, the mean cosine similarity between two different tokens of an image, and
    ``nonfinite``, the fraction of the iterations since the last entry with a loss that was not finite.

    Args:
        interval (int): Iterations between two entries. Defaults to 50.
        module (str): Name of the patch embedding in the model. Defaults to ``'backbone.patch_embed'``.
    """

    def __init__(self, interval: int = 50, module: str = 'backbone.patch_embed') -> None:
        self.interval = interval
        self.module = module
        self._due = False
        self._similarity: Optional[Tensor] = None
        self._nonfinite: List[bool] = []

    def before_train(self, runner) -> None:
        """Listen to the patch embedding.

        Raises:
            ValueError: If the model has no such module.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        modules = dict(model.named_modules())
        if self.module not in modules:
            near = [name for name in modules if 'patch_embed' in name or 'stem' in name]
            raise ValueError(
                f'StemDiversityHook: {type(model).__name__} has no module {self.module!r}; candidates: '
                f'{", ".join(near) or ", ".join(name for name, _ in model.named_children())}'
            )
        self._handle = modules[self.module].register_forward_hook(self._listen)

    def _listen(self, module: nn.Module, inputs: tuple, output) -> None:
        if self._due:
            tokens = output[0] if isinstance(output, (tuple, list)) else output.flatten(2).mT
            self._similarity = token_similarity(tokens.detach())

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Have the tokens of every ``interval``-th iteration compared."""
        self._due = self.every_n_train_iters(runner, self.interval)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Write both numbers of every ``interval``-th iteration to the log."""
        losses = [v for v in (outputs or {}).values() if isinstance(v, (Tensor, float))]
        self._nonfinite.append(not all(bool(torch.as_tensor(v).isfinite().all()) for v in losses))
        if self._due:
            # Without `loss` in its name, which would have the log print a mean over the last ten entries.
            scalars = dict(nonfinite=sum(self._nonfinite) / len(self._nonfinite))
            if self._similarity is not None:
                scalars['stem_similarity'] = self._similarity.item()
            runner.message_hub.update_scalars({f'train/{k}': v for k, v in scalars.items()})
            self._nonfinite.clear()
            self._due = False

    def after_train(self, runner) -> None:
        """Stop listening."""
        self._handle.remove()


@HOOKS.register_module()
class LossSpikeHook(Hook):
    """Count the iterations in which the loss leaps up.

    Writes ``spikes`` beside the metrics of the validation: in how many iterations since the beginning of the run
    the loss was not finite, or higher than the mean of the last finite ones by more than ``margin``.

    Args:
        window (int): So many losses before the iteration make that mean, or as many as there are. Defaults to 20.
        margin (float): Defaults to 0.5, a good deal for a cross-entropy.

    Raises:
        ValueError: If ``window`` is less than 1.
    """

    def __init__(self, window: int = 20, margin: float = 0.5) -> None:
        if window < 1:
            raise ValueError(f'window must be at least 1, got {window}')
        self.margin = margin
        self._losses: Deque[float] = deque(maxlen=window)
        self._spikes = 0

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Hold the loss of the iteration against those before."""
        loss = float(outputs['loss'])
        before = sum(self._losses) / len(self._losses) if self._losses else math.inf
        self._spikes += not math.isfinite(loss) or loss > before + self.margin
        if math.isfinite(loss):
            self._losses.append(loss)

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Write the number so far to the log."""
        runner.message_hub.update_scalar('val/spikes', self._spikes)


def token_similarity(tokens: Tensor) -> Tensor:
    """Mean cosine similarity between two different tokens of an image, averaged over the images.

    Args:
        tokens (Tensor): (B, N, C) with N > 1.

    Returns:
        Tensor: Scalar in [-1 / (N - 1), 1]; 1 when all tokens point the same way.
    """
    num = tokens.shape[1]
    total = F.normalize(tokens.float(), dim=-1).sum(
        1
    )  # |sum of unit vectors|^2 = N + sum over pairs
    return ((total.square().sum(-1) - num) / (num * (num - 1))).mean()


@register_layout('scaled_relu')
def official_keys(state: StateDict) -> StateDict:
    """Map a VOLO-style patch embedding (``conv.{0,1,3,4,6,7}``, ``proj``; ``patch_embed.`` in a whole model)."""
    return {
        k.replace('patch_embed.', 'backbone.patch_embed.projection.'): v for k, v in state.items()
    }
