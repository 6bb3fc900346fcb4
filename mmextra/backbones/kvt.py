"""KVT: k-NN Attention for Boosting Vision Transformers. arXiv 2106.00515, ECCV 2022.

Each query attends to the k keys with the largest logits instead of to all of them. There are no parameters: any
checkpoint loads, and any model with attention can be switched over.

Registered here: ``KNNAttentionHook``, which turns the attention of a stock model into k-NN attention;
``KNNVisionTransformer``, a ViT or DeiT which has it; ``KNNMultiheadAttention``, the layer alone; and
``DistractorAttentionHook``, which measures how much attention goes to clutter.
"""

import math
import re
from functools import partial
from typing import List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmextra.backbones.plain_vit import PlainViT, deit_keys
from mmextra.engine.checkpoint import StateDict, register_layout
from mmextra.registry import HOOKS, MODELS

# The attention of ViT, DeiT, T2T-ViT and TNT, Swin, BEiT, Twins; that of mmcv's transformers (ViT and Twins of mmseg,
# PVT, SegFormer); of LV-ViT and VOLO. Subclasses count.
SUPPORTED = (
    'MultiheadAttention',
    'WindowMSA',
    'WindowMSAV2',
    'BEiTAttention',
    'LocallyGroupedSelfAttention',
    'LVViTAttention',
    'ClassAttention.Attention',
)
TopK = Union[int, float]


def check_topk(topk: TopK) -> TopK:
    """Return ``topk``.

    Raises:
        ValueError: If it is neither a positive number of keys nor a share of them.
    """
    number = isinstance(topk, int) and not isinstance(topk, bool) and topk >= 1
    share = isinstance(topk, float) and 0 < topk <= 1
    if not (number or share):
        raise ValueError(
            f'topk must be a number of keys (an int of at least 1) or a share of them (a float in (0, 1]), got {topk!r}'
        )
    return topk


def num_kept(topk: TopK, num_keys: int) -> int:
    """How many of ``num_keys`` keys ``topk`` keeps: at least one, at most all."""
    kept = topk if isinstance(topk, int) else int(topk * num_keys + 0.5)
    return min(max(kept, 1), num_keys)


def knn_softmax(
    logits: Tensor, topk: TopK, exact_ties: bool = True, inplace: bool = False
) -> Tensor:
    """Softmax over the largest entries of each row, zero elsewhere (section 3.2).

    Gradients flow through the entries that are kept; which ones those are is not differentiated.

    Args:
        logits (Tensor): (..., keys).
        topk (int | float): Entries to keep in each row, at most all of them; or their share, in (0, 1].
        exact_ties (bool): Whether exactly so many are kept where several are equal to the smallest one kept, an
            arbitrary choice. Otherwise all of these are kept. Defaults to True.
        inplace (bool): Whether ``logits`` may be overwritten, which saves a copy of them. Defaults to False.

    Returns:
        Tensor: Weights of the shape of ``logits``, whose rows sum to one.
    """
    logits = logits if inplace else logits.clone()
    # Autograd need not know: what is set to -inf has weight 0 and therefore gradient 0.
    return keep_largest_(logits, topk, exact_ties, fill=-torch.inf).softmax(-1)


@torch.no_grad()
def keep_largest_(x: Tensor, topk: TopK, exact_ties: bool, fill: float) -> Tensor:
    """Overwrite all but the largest entries of each row with ``fill``, which is smaller, unseen by autograd.

    No row is sorted, and the smaller one of its two parts is selected.
    """
    kept = num_kept(topk, x.shape[-1])
    dropped = x.shape[-1] - kept
    raw = x.detach()
    if not dropped:
        return x
    if not exact_ties:
        raw.masked_fill_(raw < _smallest_kept(raw, kept), fill)
    elif dropped < kept:
        raw.scatter_(-1, raw.topk(dropped, largest=False, sorted=False).indices, fill)
    else:
        values, indices = raw.topk(kept, sorted=False)
        raw.fill_(fill).scatter_(-1, indices, values)
    return x


def _smallest_kept(logits: Tensor, kept: int) -> Tensor:
    """The ``kept``-th largest entry of each row, (..., 1)."""
    if 2 * kept <= logits.shape[-1]:
        return logits.topk(kept, sorted=False).values.amin(-1, keepdim=True)
    rest = logits.shape[-1] - kept + 1
    return logits.topk(rest, largest=False, sorted=False).values.amax(-1, keepdim=True)


def knn_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    topk: TopK = 100,
    attn_mask: Optional[Tensor] = None,
    dropout_p: float = 0.0,
    scale: Optional[float] = None,
    exact_ties: bool = True,
) -> Tensor:
    """Scaled dot-product attention of each query to the keys with its largest logits.

    A mask counts before the selection, so that no masked key is kept in place of another one.

    Args:
        query (Tensor): (..., queries, d).
        key (Tensor): (..., keys, d).
        value (Tensor): (..., keys, e).
        topk (int | float): Keys to keep for each query, at most all; or their share, in (0, 1]. Defaults to 100.
        attn_mask (Tensor, optional): Broadcast to (..., queries, keys); added to the logits, or, if boolean, True for
            keys that may be attended to. Defaults to None.
        dropout_p (float): Dropout of the weights. Defaults to 0.
        scale (float, optional): Scale of the logits. Defaults to None, d ** -0.5.
        exact_ties (bool): See :func:`knn_softmax`. Defaults to True.

    Returns:
        Tensor: (..., queries, e).
    """
    logits = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.mT
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        logits = logits + attn_mask
    weights = knn_softmax(logits, topk, exact_ties, inplace=True)
    return F.dropout(weights, dropout_p) @ value


class KNNDotProduct:
    """:func:`knn_attention` with the signature of ``torch.nn.functional.scaled_dot_product_attention``.

    Args:
        topk (int | float): See :func:`knn_softmax`.
        exact_ties (bool): See :func:`knn_softmax`. Defaults to True.
        scale (float, optional): Scale of the logits where the call gives none. Defaults to None, d ** -0.5.
    """

    def __init__(self, topk: TopK, exact_ties: bool = True, scale: Optional[float] = None) -> None:
        self.topk = topk
        self.exact_ties = exact_ties
        self.scale = scale

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Optional[Tensor] = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: Optional[float] = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Attend; see :func:`knn_attention`."""
        if is_causal or enable_gqa:
            raise ValueError('k-NN attention supports neither is_causal nor enable_gqa')
        scale = self.scale if scale is None else scale
        return knn_attention(
            query, key, value, self.topk, attn_mask, dropout_p, scale, self.exact_ties
        )


class KNNSoftmax(nn.Module):
    """:func:`knn_softmax` in the place of an ``nn.Softmax`` over keys. It overwrites its input."""

    def __init__(self, topk: TopK, exact_ties: bool = True) -> None:
        super().__init__()
        self.topk = topk
        self.exact_ties = exact_ties

    def forward(self, logits: Tensor) -> Tensor:
        """Weights (..., keys) for logits (..., keys)."""
        return knn_softmax(logits, self.topk, self.exact_ties, inplace=True)


class KNNDropout(nn.Dropout):
    """Keep the largest weights of each row, have them sum to one again, and drop out.

    In the place of the dropout that follows on a dense softmax this is k-NN attention: the weights are in the order of
    the logits, and softmax over a part of the keys is the dense one, normalised over that part.
    """

    def __init__(self, p: float, topk: TopK, exact_ties: bool = True) -> None:
        super().__init__(p)
        self.topk = topk
        self.exact_ties = exact_ties

    def forward(self, weights: Tensor) -> Tensor:
        """Weights (..., keys) of k-NN attention for those of dense attention."""
        with torch.no_grad():
            copy = weights.detach().clone()
            dropped = keep_largest_(copy, self.topk, self.exact_ties, fill=0.0) == 0
        kept = weights.masked_fill(dropped, 0.0)
        return super().forward(kept / kept.sum(-1, keepdim=True))


class KNNTorchMultiheadAttention(nn.MultiheadAttention):
    """torch's ``nn.MultiheadAttention`` as k-NN attention; see :func:`apply_knn_attention`."""

    dot_product: KNNDotProduct

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Optional[Tensor] = None,
        need_weights: bool = True,
        attn_mask: Optional[Tensor] = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> Tuple[Tensor, None]:
        """Attend, with the arguments of the parent class, but for the weights, which are not returned."""
        if not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        weights = (
            self.in_proj_weight.chunk(3)
            if self._qkv_same_embed_dim
            else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        )
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases)
        )  # (B, h, N, d)
        mask = _additive_mask(attn_mask, q)
        if mask is not None and mask.ndim == 3:  # one for each image and head
            mask = mask.unflatten(0, (-1, self.num_heads))
        padding = _additive_mask(key_padding_mask, q)
        if padding is not None:
            padding = padding[:, None, None]
            mask = padding if mask is None else mask + padding
        drop = self.dropout if self.training else 0.0
        out = self.out_proj(self.dot_product(q, k, v, mask, drop).transpose(1, 2).flatten(2))
        return out if self.batch_first else out.transpose(0, 1), None


def _additive_mask(mask: Optional[Tensor], like: Tensor) -> Optional[Tensor]:
    """A mask of ``nn.MultiheadAttention``, where True forbids, as one to add to the logits."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, -torch.inf)


class _Redirect(TorchFunctionMode):
    """Hand calls of ``F.scaled_dot_product_attention`` to another function, and count them."""

    def __init__(self, target: KNNDotProduct) -> None:
        super().__init__()
        self.target = target
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.calls += 1
            func = self.target
        return func(*args, **(kwargs or {}))


class _RedirectedForward:
    """Forward of a module that calls ``F.scaled_dot_product_attention`` by itself, with k-NN attention instead."""

    def __init__(self, module: nn.Module, target: KNNDotProduct) -> None:
        self.module = module
        self.target = target

    def __call__(self, *args, **kwargs):
        mode = _Redirect(self.target)
        with mode:  # not `as mode`, which torch.compile does not know
            out = type(self.module).forward(self.module, *args, **kwargs)
        if not mode.calls:
            raise RuntimeError(
                f'{type(self.module).__qualname__} did not call F.scaled_dot_product_attention: it cannot have k-NN '
                'attention. Take its name out of `modules`.'
            )
        return out


def _patch(module: nn.Module, topk: TopK, exact_ties: bool) -> bool:
    """Give one attention module k-NN attention, whichever way it computes attention; say whether there was a way."""
    dot_product = getattr(module, 'scaled_dot_product_attention', None)
    softmax = getattr(module, 'softmax', None)
    dropout = getattr(module, 'attn_drop', None)
    if isinstance(module, nn.MultiheadAttention):
        if module.bias_k is not None or module.add_zero_attn:
            raise ValueError('k-NN attention supports neither add_bias_kv nor add_zero_attn')
        module.__class__ = KNNTorchMultiheadAttention
        module.dot_product = KNNDotProduct(topk, exact_ties)
    elif dot_product is not None:
        scale = getattr(dot_product, 'scale', None)
        if isinstance(dot_product, partial):  # mmpretrain's own realisation divides by its `scale`
            scale = 1 / dot_product.keywords['scale']
        module.scaled_dot_product_attention = KNNDotProduct(topk, exact_ties, scale)
    elif isinstance(softmax, (nn.Softmax, KNNSoftmax)):
        module.softmax = KNNSoftmax(topk, exact_ties)
    elif isinstance(dropout, nn.Dropout):
        module.attn_drop = KNNDropout(dropout.p, topk, exact_ties).train(dropout.training)
    elif isinstance(dropout, (int, float)):
        module.forward = _RedirectedForward(module, KNNDotProduct(topk, exact_ties))
    else:
        return False
    return True


def apply_knn_attention(
    model: nn.Module,
    topk: TopK = 100,
    modules: Sequence[str] = SUPPORTED,
    exclude: Union[str, Sequence[str]] = (),
    exact_ties: bool = True,
) -> List[str]:
    """Turn the attention of a model into k-NN attention, in place.

    Parameters and their names do not change. Applying it again changes ``topk``.

    Args:
        model (nn.Module): Any model.
        topk (int | float): Keys to keep for each query, at most all; or their share, in (0, 1]. Defaults to 100.
        modules (Sequence[str]): Names of attention classes; subclasses count. Defaults to those of :data:`SUPPORTED`.
        exclude (str | Sequence[str]): Regular expressions; modules in whose name one is found keep dense attention.
            Defaults to none.
        exact_ties (bool): See :func:`knn_softmax`. Defaults to True.

    Returns:
        list[str]: Names of the modules that have changed.

    Raises:
        ValueError: If there is no such module, or a named one computes attention in a way that cannot be changed.
    """
    check_topk(topk)
    exclude = [exclude] if isinstance(exclude, str) else list(exclude)
    changed, others = [], set()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
        elif isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # else testing goes past its attention, to a kernel
        cls = type(module)
        known = any(c.__name__ in modules or c.__qualname__ in modules for c in cls.__mro__)
        if not known or isinstance(getattr(module, 'attn', None), nn.MultiheadAttention):
            # The latter is mmcv's wrapper of torch's attention, which comes by itself.
            if re.search('Att|MSA', cls.__name__):
                others.add(cls.__qualname__)
        elif any(re.search(pattern, name) for pattern in exclude):
            continue
        elif _patch(module, topk, exact_ties):
            changed.append(name)
        else:
            raise ValueError(
                f'{cls.__qualname__} ({name}) cannot have k-NN attention: its weights are out of reach. Take it out of '
                '`modules`, or add its name to `exclude`.'
            )
    if not changed:
        raise ValueError(
            f'{type(model).__name__} has no attention of the classes {", ".join(modules)} that is not excluded'
            + (f'; it has {", ".join(sorted(others))}' if others else '')
            + '. XCiT, which attends to channels, and LeViT are not supported.'
        )
    return changed


@HOOKS.register_module()
class KNNAttentionHook(Hook):
    """Train and test a stock model with k-NN attention.

    The attention of the model is changed before the run begins. Parameters and their names are not, so checkpoints,
    ``paramwise_cfg`` and converters keep working. Testing needs the hook as well: with it in the config it has it.

    Known are the attentions of mmpretrain's ViT, DeiT, T2T-ViT, TNT, BEiT, Swin (v1, v2) and Twins, of mmseg's and
    mmdet's Swin, PVT, SegFormer, Twins, ViT, BEiT and DETR-like transformers (torch's ``nn.MultiheadAttention``), and
    of LV-ViT and VOLO. XCiT and LeViT are not supported.

    Args:
        topk (int | float): Keys to keep for each query, at most all; or their share, in (0, 1]. The paper has 100 of
            197; about half of the keys of a window, 25 of 49, is the same ratio. Defaults to 100.
        modules (Sequence[str]): Names of attention classes; subclasses count. Defaults to all that are known.
        exclude (str | Sequence[str]): Regular expressions; modules in whose name one is found keep dense attention.
            Defaults to none.
        exact_ties (bool): See :func:`knn_softmax`. Defaults to True.

    Example:
        >>> _base_ = 'mmpretrain::deit/deit-tiny_4xb256_in1k.py'
        >>> custom_hooks = [dict(type='mmextra.KNNAttentionHook', topk=100)]
    """

    # Before EMA copies the model.
    priority = 'VERY_HIGH'

    def __init__(
        self,
        topk: TopK = 100,
        modules: Sequence[str] = SUPPORTED,
        exclude: Union[str, Sequence[str]] = (),
        exact_ties: bool = True,
    ) -> None:
        self.topk = check_topk(topk)
        self.modules = modules
        self.exclude = exclude
        self.exact_ties = exact_ties

    def before_run(self, runner) -> None:
        """Change the model, and log how many modules that were."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        changed = apply_knn_attention(model, self.topk, self.modules, self.exclude, self.exact_ties)
        print_log(
            f'KNNAttentionHook: {len(changed)} attention modules now keep topk={self.topk} keys: {", ".join(changed)}',
            'current',
        )


def class_token_weights(attn: MultiheadAttention, x: Tensor) -> Tensor:
    """The weights with which the first token attends in a layer of the host, dense or k-NN.

    Args:
        attn (MultiheadAttention): The layer.
        x (Tensor): Its input (B, N, C).

    Returns:
        Tensor: (B, h, N). Rows sum to one.
    """
    q, k, _ = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    # With unit vectors for values, the output is the weights.
    units = torch.eye(x.shape[1], dtype=k.dtype, device=k.device).expand(*k.shape[:2], -1, -1)
    return attn.scaled_dot_product_attention(q[:, :, :1], k, units).squeeze(2)


def distractor_mass(weights: Tensor, object_mask: Tensor) -> Tensor:
    """The attention of the class token that goes to patches without any part of an object.

    Args:
        weights (Tensor): Of the class token, which is the first one, and of patches on a square grid, (..., B, h, N).
        object_mask (Tensor): Where the objects are, (B, H, W), bool.

    Returns:
        Tensor: (..., B), in [0, 1]; mean over the heads.

    Raises:
        ValueError: If the tokens are not those.
    """
    patches = weights[..., 1:]
    side = math.isqrt(patches.shape[-1])
    if side**2 != patches.shape[-1]:
        raise ValueError(
            f'weights of {weights.shape[-1]} tokens: they must be a class token and the patches of a square grid'
        )
    covered = F.adaptive_max_pool2d(object_mask.float()[:, None], side).flatten(2)  # (B, 1, N - 1)
    return (patches * (covered == 0)).sum(-1).mean(-1)


@HOOKS.register_module()
class DistractorAttentionHook(Hook):
    """Log how much of the class token's attention goes to patches without an object, in the validation.

    Writes ``distractor_mass``, the mean over the layers, and ``distractor_mass_last``, that of the last layer, beside
    the metrics of the validation. Both lie in [0, 1].

    The data samples need an ``object_mask`` (H, W), as ``PackInputs(algorithm_keys=('object_mask',))`` packs that of
    :class:`~mmextra.backbones.drawn_images.ObjectAmongTextures`. It knows mmpretrain's ``MultiheadAttention`` (ViT,
    DeiT), dense or with k-NN attention, on square grids of patches after one class token.
    """

    def before_val(self, runner) -> None:
        """Listen to the attention modules.

        Raises:
            ValueError: If there is none.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        modules = [m for m in model.modules() if isinstance(m, MultiheadAttention)]
        if not modules:
            raise ValueError(
                f"DistractorAttentionHook: {type(model).__name__} has no MultiheadAttention of mmpretrain's"
            )
        self._handles = [m.register_forward_hook(self._record) for m in modules]
        self._weights: List[Tensor] = []
        self._masses: List[Tensor] = []

    def _record(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self._weights.append(class_token_weights(module, *inputs))

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Hold the weights of a batch against its masks.

        Raises:
            ValueError: If there are no masks.
        """
        weights, self._weights = torch.stack(self._weights), []  # (layers, B, h, N)
        if not all('object_mask' in sample for sample in outputs):
            raise ValueError(
                'DistractorAttentionHook needs an object_mask in every data sample of the validation: name it in '
                'algorithm_keys of PackInputs'
            )
        masks = torch.stack([torch.as_tensor(sample.object_mask) for sample in outputs])
        self._masses.append(distractor_mass(weights, masks.to(weights.device)))

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Write both numbers to the log, and stop listening."""
        for handle in self._handles:
            handle.remove()
        masses = torch.cat(self._masses, dim=1).mean(1)  # (layers, )
        all_reduce(masses, op='mean')
        runner.message_hub.update_scalars(
            {
                'val/distractor_mass': masses.mean().item(),
                'val/distractor_mass_last': masses[-1].item(),
            }
        )


@MODELS.register_module()
class KNNMultiheadAttention(MultiheadAttention):
    """mmpretrain's multi-head attention as k-NN attention (section 3.2).

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads h.
        topk (int | float): Keys to keep for each query, at most all; or their share, in (0, 1]. Defaults to 100.
        exact_ties (bool): See :func:`knn_softmax`. Defaults to True.
        qk_scale (float, optional): Scale of the logits. Defaults to None, ``(C / h) ** -0.5``.
        **kwargs: Further arguments of the parent class.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        topk: TopK = 100,
        exact_ties: bool = True,
        qk_scale: Optional[float] = None,
        **kwargs,
    ) -> None:
        super().__init__(embed_dims, num_heads, **kwargs)
        self.scaled_dot_product_attention = KNNDotProduct(check_topk(topk), exact_ties, qk_scale)


@MODELS.register_module()
class KNNVisionTransformer(PlainViT):
    """mmpretrain's ``VisionTransformer`` with k-NN attention in every layer.

    Args:
        arch (str | dict): As in the parent class. Defaults to ``'deit-tiny'``.
        topk (int | float): Keys to keep for each query, at most all; or their share, in (0, 1]. Defaults to 100.
        exact_ties (bool): See :func:`knn_softmax`. Defaults to True.
        qk_scale (float, optional): Scale of the logits. Defaults to None, the head's dimension ** -0.5.
        **kwargs: Further arguments of :class:`PlainViT` and of mmpretrain's ``VisionTransformer``.

    Raises:
        ValueError: If an argument is out of its range.
    """

    official_layout = 'kvt'

    def __init__(
        self,
        arch: Union[str, dict] = 'deit-tiny',
        topk: TopK = 100,
        exact_ties: bool = True,
        qk_scale: Optional[float] = None,
        **kwargs,
    ) -> None:
        super().__init__(arch, **kwargs)
        for layer in self.layers:
            core = KNNDotProduct(check_topk(topk), exact_ties, qk_scale)
            layer.attn.scaled_dot_product_attention = core


@register_layout('kvt')
def official_keys(state: StateDict) -> StateDict:
    """Map the flat keys of DeiT, which the released models have."""
    return deit_keys(state, {'pre_logits.fc.': 'pre_logits.'})
