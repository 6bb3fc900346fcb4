"""ELSA: Enhanced Local Self-Attention for Vision Transformer. arXiv 2112.12786, 2021.

A local attention whose weights come from the product of query and key channel by channel, through a small convolutional
net, and are combined with static filters of each channel (the ghost head). It takes the place of window attention in
the first three stages of Swin, and of outlook attention in VOLO.

Registered here: ``ELSA``, ``ELSABlock``, ``ELSASwin`` and ``ELSAVOLO``. The operation alone is :func:`elsa_op`.
"""

from contextlib import nullcontext
from typing import Iterator, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import BaseModule, ModuleList
from mmengine.model.weight_init import trunc_normal_
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from mmextra.backbones.swin_base import INIT_CFG, SwinBackbone, swin_keys
from mmextra.backbones.volo import VOLO
from mmextra.engine.checkpoint import StateDict, register_layout
from mmextra.registry import MODELS

Size = Tuple[int, int]


class _Aggregate(torch.autograd.Function):
    """Weighted sum of the neighbours: shifted multiply-adds, of which nothing but the inputs is kept.

    Values (B, H, W, G, D), weights (K*K, B, H, W, G, 1) and, or None, factors (K*K, B or 1, 1, 1, G, D).
    """

    @staticmethod
    def forward(ctx, values: Tensor, weights: Tensor, factors: Optional[Tensor], dilation: int):
        ctx.dilation = dilation
        ctx.save_for_backward(values, weights, factors)
        return _aggregate(values, weights, factors, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        values, weights, factors = ctx.saved_tensors
        padded = _pad(values, weights, ctx.dilation)
        grad_padded, grad_weights = torch.zeros_like(padded), torch.empty_like(weights)
        grad_factors = None if factors is None else torch.empty_like(factors)
        grad_views = _shifts(grad_padded, weights, ctx.dilation)
        product = torch.empty_like(values)
        for t, view in enumerate(_shifts(padded, weights, ctx.dilation)):
            torch.mul(grad, view, out=product)
            scaled = grad
            if factors is not None:
                grad_factors[t] = (product * weights[t]).sum_to_size(factors.shape[1:])
                product *= factors[t]
                scaled = grad * factors[t]
            torch.sum(product, -1, keepdim=True, out=grad_weights[t])
            next(grad_views).addcmul_(weights[t], scaled)
        before = (padded.shape[1] - values.shape[1]) // 2
        inner = grad_padded[:, before : before + values.shape[1], before : before + values.shape[2]]
        return inner, grad_weights, grad_factors, None


def _aggregate(values: Tensor, weights: Tensor, factors: Optional[Tensor], dilation: int) -> Tensor:
    """What :class:`_Aggregate` computes."""
    out = torch.zeros_like(values)
    for t, view in enumerate(_shifts(_pad(values, weights, dilation), weights, dilation)):
        out.addcmul_(weights[t], view if factors is None else view * factors[t])
    return out


def _pad(values: Tensor, weights: Tensor, dilation: int) -> Tensor:
    """Put as many zeros around the map (B, H, W, G, D) as the windows reach beyond it."""
    around = round(len(weights) ** 0.5) // 2 * dilation
    return F.pad(values, (0, 0, 0, 0, *(around,) * 4))


def _shifts(padded: Tensor, weights: Tensor, dilation: int) -> Iterator[Tensor]:
    """The neighbours of all pixels, one place of the window after the other, row by row: views of the padded map."""
    kernel_size, (height, width) = round(len(weights) ** 0.5), weights.shape[2:4]
    for i in range(0, kernel_size * dilation, dilation):
        for j in range(0, kernel_size * dilation, dilation):
            yield padded[:, i : i + height, j : j + width]


def elsa_op(
    v: Tensor,
    ghost_mul: Optional[Tensor],
    ghost_add: Optional[Tensor],
    attn: Tensor,
    lam: float = 1,
    gamma: float = 1,
    kernel_size: int = 5,
    dilation: int = 1,
) -> Tensor:
    r"""Aggregate neighbours with attention weights and static filters.

    .. math:: y_c(p) = \sum_t (m_c(t)^\lambda a_{g(c)}(p, t) + \gamma g_c(t)) \, v_c(p + o_t)

    with the offsets :math:`o_t` row by row and zeros beyond the map. In single precision, whatever the inputs have.

    Args:
        v (Tensor): Values, (B, C, H, W). Fastest in channels-last memory format.
        ghost_mul (Tensor, optional): m, (B or 1, C, K, K). Not read for ``lam=0``.
        ghost_add (Tensor, optional): g, (B or 1, C, K, K). Not read for ``gamma=0``.
        attn (Tensor): a, (B, G * K * K, H, W) for G heads of C / G neighbouring channels.
        lam (float): Lambda. Defaults to 1.
        gamma (float): Gamma. Defaults to 1.
        kernel_size (int): K, odd. Defaults to 5.
        dilation (int): Distance of the neighbours. Defaults to 1.

    Returns:
        Tensor: (B, C, H, W), in channels-last memory format.

    Raises:
        ValueError: If the shapes do not fit, or a ghost filter is missing.
    """
    batch, channels, height, width = v.shape
    heads = attn.shape[1] // kernel_size**2
    if attn.shape[1] % kernel_size**2 or not heads or channels % heads:
        raise ValueError(
            f'attn must have heads * {kernel_size}**2 channels, and the {channels} channels of v be a multiple of the '
            f'heads; got {attn.shape[1]}'
        )
    for name, ghost, power in (('ghost_mul', ghost_mul, lam), ('ghost_add', ghost_add, gamma)):
        shapes = [(n, channels, kernel_size, kernel_size) for n in (1, batch)]
        if power and (ghost is None or tuple(ghost.shape) not in shapes):
            given = None if ghost is None else tuple(ghost.shape)
            raise ValueError(f'{name} must have the shape {shapes[0]} or {shapes[1]}, got {given}')
    split, precision = (heads, channels // heads), torch.promote_types(v.dtype, torch.float)
    no_autocast = torch.autocast(v.device.type, enabled=False) if not v.is_meta else nullcontext()
    with no_autocast:
        values = v.to(precision).permute(0, 2, 3, 1).unflatten(3, split)  # (B, H, W, G, D)
        weights = attn.to(precision).unflatten(1, (heads, -1)).permute(2, 0, 3, 4, 1)
        factors = None
        if lam:
            factors = (ghost_mul.to(precision) ** float(lam)).flatten(2).permute(2, 0, 1)
            factors = factors.unflatten(2, split)[:, :, None, None]  # (K*K, B or 1, 1, 1, G, D)
        # Functions of our own cannot be traced.
        aggregate = _aggregate if torch.jit.is_tracing() else _Aggregate.apply
        y = aggregate(values, weights.unsqueeze(-1).contiguous(), factors, dilation)
        y = y.flatten(3).permute(0, 3, 1, 2)
        if gamma:
            y = y + depthwise(v.to(precision), float(gamma) * ghost_add.to(precision), dilation)
    return y.to(v.dtype)


def depthwise(v: Tensor, filters: Tensor, dilation: int) -> Tensor:
    """Convolve each channel of (B, C, H, W) with its filter, (B or 1, C, K, K), of odd K; the size stays."""
    padding = filters.shape[-1] // 2 * dilation
    maps = v if len(filters) == 1 else v.reshape(1, -1, *v.shape[2:])
    filters = filters.flatten(0, 1).unsqueeze(1)
    out = F.conv2d(maps, filters, padding=padding, dilation=dilation, groups=len(filters))
    return out.reshape(v.shape)


@MODELS.register_module()
class ELSA(BaseModule):
    r"""Enhanced local self-attention.

    A 1x1 convolution makes queries, keys and values. The Hadamard product :math:`u = \alpha q \odot k` goes through a
    grouped K x K convolution, GELU and a 1x1 convolution, which gives each head K x K logits for each pixel. Their
    softmax and the static filters of the ghost head weigh the neighbours, see :func:`elsa_op`. Neighbours beyond the
    map keep their share of the softmax and are zero.

    Args:
        dim (int): Channels C.
        num_heads (int): Heads G.
        dim_qk (int, optional): Channels of queries and keys, rounded up to a multiple of ``group_width``. Defaults to
            None, two thirds of C.
        dim_v (int, optional): Channels of the values. Defaults to None, C.
        kernel_size (int): Side K of the neighbourhood, odd. Defaults to 5.
        dilation (int): Distance of the neighbours. Defaults to 1.
        qkv_bias (bool): Whether queries, keys and values have a bias. Defaults to False.
        qk_scale (float, optional): Alpha; 1 for no scaling. Defaults to None, ``(dim_v / G) ** -0.5``.
        group_width (int): Channels w of a group of the K x K convolution. Defaults to 8.
        lam (float): Power of the factors m in the ghost head; 0 for none. Defaults to 1.
        gamma (float): Weight of the summands g in the ghost head; 0 for none. Defaults to 1.
        init_cfg (dict, optional): Defaults to None.

    Attributes:
        ghost_head (nn.Parameter | None): m and g, (2, 1, dim_v, K, K); (1, dim_v, K, K) if there is but one of them.

    Raises:
        ValueError: If ``kernel_size`` is even, or the channels of the values are no multiple of ``num_heads``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        dim_qk: Optional[int] = None,
        dim_v: Optional[int] = None,
        kernel_size: int = 5,
        dilation: int = 1,
        qkv_bias: bool = False,
        qk_scale: Optional[float] = None,
        group_width: int = 8,
        lam: float = 1,
        gamma: float = 1,
        init_cfg: Optional[dict] = None,
    ) -> None:
        super().__init__(init_cfg)
        dim_v = dim_v or dim
        dim_qk = -(-(dim_qk or max(dim // 3 * 2, 1)) // group_width) * group_width
        if kernel_size % 2 == 0:
            raise ValueError(
                f'kernel_size must be odd, got {kernel_size}; it is elsa_kernel of a backbone'
            )
        if dim_v % num_heads:
            raise ValueError(
                f'{dim_v} channels of values are no multiple of num_heads={num_heads}: change dim_v or dim '
                '(embed_dims of a block)'
            )
        self.kernel_size, self.dilation = kernel_size, dilation
        self.scale = (dim_v // num_heads) ** -0.5 if qk_scale is None else qk_scale
        self.lam, self.gamma = lam, gamma
        self.split = (dim_qk, dim_qk, dim_v)
        self.pre_proj = nn.Conv2d(dim, sum(self.split), 1, bias=qkv_bias)
        self.attn = nn.Sequential(
            nn.Conv2d(
                dim_qk,
                dim_qk,
                kernel_size,
                padding=kernel_size // 2 * dilation,
                dilation=dilation,
                groups=dim_qk // group_width,
            ),
            nn.GELU(),
            nn.Conv2d(dim_qk, kernel_size**2 * num_heads, 1),
        )
        self.post_proj = nn.Linear(dim_v, dim)
        shape = (1, dim_v, kernel_size, kernel_size)
        self.ghost_head = None
        if lam or gamma:
            self.ghost_head = nn.Parameter(
                torch.empty(2, *shape) if lam and gamma else torch.empty(shape)
            )
            self.reset_ghost_head()

    def reset_ghost_head(self) -> None:
        """Draw m from a standard normal distribution, g from a truncated one of std 0.02."""
        ghost_mul, ghost_add = self.ghosts()
        if ghost_mul is not None:
            nn.init.normal_(ghost_mul)
        if ghost_add is not None:
            trunc_normal_(ghost_add, std=0.02)

    def ghosts(self) -> Tuple[Optional[Tensor], Optional[Tensor]]:
        """The filters m and g, each (1, dim_v, K, K) or None."""
        if self.lam and self.gamma:
            return self.ghost_head[0], self.ghost_head[1]
        return (self.ghost_head, None) if self.lam else (None, self.ghost_head)

    def forward(self, x: Tensor) -> Tensor:
        """Attend.

        Args:
            x (Tensor): (B, H, W, C).

        Returns:
            Tensor: (B, H, W, C).
        """
        q, k, v = self.pre_proj(x.permute(0, 3, 1, 2)).split(self.split, dim=1)
        hidden = self.attn[:2](q * k * self.scale)  # (B, dim_qk, H, W)
        logits = self.attn[2](
            hidden.contiguous()
        )  # the softmax is faster over the channels of contiguous maps
        attn = logits.unflatten(1, (-1, self.kernel_size**2)).softmax(2).flatten(1, 2)
        ghosts = self.ghosts()
        y = elsa_op(v, *ghosts, attn, self.lam, self.gamma, self.kernel_size, self.dilation)
        return self.post_proj(y.permute(0, 2, 3, 1))


@MODELS.register_module()
class ELSABlock(BaseModule):
    """Pre-norm block of :class:`ELSA` and an MLP, on the tokens of a map.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads.
        kernel_size (int): Side of the neighbourhood. Defaults to 7.
        group_width (int): Channels of a group, see :class:`ELSA`. Defaults to 8.
        lam (float): See :class:`ELSA`. Defaults to 0.
        gamma (float): See :class:`ELSA`. Defaults to 1.
        qkv_bias (bool): Whether queries, keys and values have a bias. Defaults to True.
        qk_scale (float, optional): Scale of the product of queries and keys. Defaults to 1, none.
        mlp_ratio (float): Hidden channels of the MLP over C. Defaults to 4.
        drop_rate (float): Dropout of the MLP. Defaults to 0.
        drop_path_rate (float): Stochastic depth of either branch. Defaults to 0.
        with_cp (bool): Recompute the block in the backward pass to save memory. Defaults to False.
        init_cfg (dict, optional): Defaults to None.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        kernel_size: int = 7,
        group_width: int = 8,
        lam: float = 0,
        gamma: float = 1,
        qkv_bias: bool = True,
        qk_scale: Optional[float] = 1,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        init_cfg: Optional[dict] = None,
    ) -> None:
        super().__init__(init_cfg)
        self.with_cp = with_cp
        self.norm1 = nn.LayerNorm(embed_dims)
        self.attn = ELSA(
            embed_dims,
            num_heads,
            kernel_size=kernel_size,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            group_width=group_width,
            lam=lam,
            gamma=gamma,
        )
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = nn.LayerNorm(embed_dims)
        self.ffn = FFN(
            embed_dims,
            int(embed_dims * mlp_ratio),
            act_cfg=dict(type='GELU'),
            ffn_drop=drop_rate,
            dropout_layer=dict(type='DropPath', drop_prob=drop_path_rate),
        )

    def forward(self, x: Tensor, hw_shape: Size) -> Tensor:
        """Transform the tokens (B, H*W, C) of a map of size ``hw_shape``, (H, W)."""
        if self.with_cp and self.training:
            return checkpoint(self.transform, x, hw_shape, use_reentrant=False)
        return self.transform(x, hw_shape)

    def transform(self, x: Tensor, hw_shape: Size) -> Tensor:
        """Both branches of the block."""
        x = x + self.drop_path(self.attn(self.norm1(x).unflatten(1, hw_shape)).flatten(1, 2))
        return self.ffn(self.norm2(x), identity=x)


@MODELS.register_module()
class ELSASwin(SwinBackbone):
    """Swin transformer with ELSA in all stages but the last.

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'base'``, or a dict with ``embed_dims`` (int), ``depths`` and
            ``num_heads`` (lists). Defaults to ``'tiny'``.
        img_size (int | tuple[int]): The usual size of the image in pixels. Defaults to 224.
        patch_size (int): Side of a patch in pixels. Defaults to 4.
        in_channels (int): Channels of the image. Defaults to 3.
        window_size (int): Side of the windows of the last stage. Defaults to 7.
        elsa_kernel (int): Side of the neighbourhoods. Defaults to 7.
        group_width (int, optional): Channels of a group, see :class:`ELSA`; it decides shapes of parameters. Defaults
            to None: 4 for ``'tiny'``, else 8, as published.
        lam (float): Power of the factors in the ghost head. Defaults to 0, none.
        gamma (float): Weight of the summands in the ghost head. Defaults to 1.
        mlp_ratio (float): Hidden channels of the MLPs over those of the tokens. Defaults to 4.
        qkv_bias (bool): Whether queries, keys and values have a bias. Defaults to True.
        drop_rate (float): Dropout of the embedding and the MLPs. Defaults to 0.
        drop_path_rate (float): Stochastic depth of the last block, rising linearly from 0. Defaults to 0.1.
        out_indices (Sequence[int]): Stages whose normalised output is returned. Defaults to (3, ).
        with_cp (bool): Recompute blocks in the backward pass to save memory. Defaults to False.
        pad_small_map (bool, optional): What the last stage does with maps that are not larger than a window: pad and
            shift them, as the authors' detectors; or never shift, and refuse smaller ones, as the classifiers. Defaults
            to None: True if several stages are returned.
        init_cfg (dict | list[dict], optional): Defaults to truncated normal (0.02) linear layers.
        **kwargs: ``frozen_stages`` and ``norm_eval`` of the host's class.

    Raises:
        ValueError: If ``arch`` is none of the above.
    """

    official_layout = 'elsa'

    def __init__(
        self,
        arch: Union[str, dict] = 'tiny',
        img_size: Union[int, Size] = 224,
        patch_size: int = 4,
        in_channels: int = 3,
        window_size: int = 7,
        elsa_kernel: int = 7,
        group_width: Optional[int] = None,
        lam: float = 0,
        gamma: float = 1,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        out_indices: Sequence[int] = (3,),
        with_cp: bool = False,
        pad_small_map: Optional[bool] = None,
        init_cfg: Union[dict, list, None] = INIT_CFG,
        **kwargs,
    ) -> None:
        settings = self.settings_of(arch)
        stages = len(settings['depths'])
        last = dict(
            ffn_ratio=mlp_ratio,
            attn_cfgs=dict(qkv_bias=qkv_bias),
            ffn_cfgs=dict(ffn_drop=drop_rate),
        )
        super().__init__(
            settings,
            img_size,
            patch_size,
            in_channels,
            window_size,
            drop_rate,
            drop_path_rate,
            out_indices=out_indices,
            with_cp=with_cp,
            pad_small_map=len(out_indices) > 1 if pad_small_map is None else pad_small_map,
            stage_cfgs=[*[dict(depth=0, drop_paths=[])] * (stages - 1), dict(block_cfgs=last)],
            init_cfg=init_cfg,
            **kwargs,
        )
        if group_width is None:
            group_width = 4 if isinstance(arch, str) and arch.lower() in ('t', 'tiny') else 8
        rates = iter(np.linspace(0, drop_path_rate, sum(self.depths)).tolist())
        for i, stage in enumerate(self.stages[:-1]):
            stage.blocks = ModuleList(
                ELSABlock(
                    2**i * self.embed_dims,
                    self.num_heads[i],
                    elsa_kernel,
                    group_width,
                    lam,
                    gamma,
                    qkv_bias,
                    mlp_ratio=mlp_ratio,
                    drop_rate=drop_rate,
                    drop_path_rate=next(rates),
                    with_cp=with_cp,
                )
                for _ in range(self.depths[i])
            )
        self._freeze_stages()


@MODELS.register_module()
class ELSAVOLO(VOLO):
    """VOLO whose outlook attention is replaced by :class:`ELSA`.

    No code was released. Here ELSA has its defaults (neighbourhoods of 5x5, groups of 8, both ghost filters) and no
    scale; all else is VOLO's.

    Args:
        arch (str | dict): ``'d1'`` ... ``'d5'``, or a dict, as VOLO's. Defaults to ``'d1'``.
        elsa_cfg (dict): Arguments of :class:`ELSA`. Defaults to ``dict(kernel_size=5, group_width=8, qk_scale=1)``.
        **kwargs: The further arguments of :class:`~mmextra.backbones.volo.VOLO` but ``outlook_cfg``.

    Raises:
        ValueError: If ``outlook_cfg`` is given.
    """

    official_layout = None

    def __init__(
        self,
        arch: Union[str, dict] = 'd1',
        elsa_cfg: dict = dict(kernel_size=5, group_width=8, qk_scale=1),
        **kwargs,
    ) -> None:
        if 'outlook_cfg' in kwargs:
            raise ValueError(
                f'ELSAVOLO has no outlook attention: set elsa_cfg, not outlook_cfg={kwargs["outlook_cfg"]}'
            )
        self.elsa_cfg = elsa_cfg
        super().__init__(arch, **kwargs)

    def local_attention(self, dim: int, num_heads: int) -> ELSA:
        """Make the attention of an outlooker, from (B, H, W, C) to the same."""
        return ELSA(dim, num_heads, qkv_bias=self.attn_cfg['qkv_bias'], **self.elsa_cfg)


@register_layout('elsa')
def official_keys(state: StateDict) -> StateDict:
    """Map the keys of ELSA-Swin classifiers and detectors to those of an mm checkpoint.

    Their window attention projects to values, queries, keys, in this order, and looks up the bias by key minus query;
    the host's, to queries, keys, values, by query minus key.
    """
    mapped = dict(state)
    for prefix in [key.removesuffix('rb') for key in state if key.endswith('attn.rb')]:
        table, index = mapped.pop(f'{prefix}rb'), mapped.pop(f'{prefix}relative_id')
        side = round(len(index) ** 0.5)
        mapped[f'{prefix}relative_position_bias_table'] = table.flip(1).T.contiguous()
        mapped[f'{prefix}relative_position_index'] = (table.shape[1] - 1 - index).view(side, side)
        for kind in ('weight', 'bias'):
            if f'{prefix}pre_proj.{kind}' in mapped:
                value, query, key = mapped.pop(f'{prefix}pre_proj.{kind}').chunk(3)
                mapped[f'{prefix}qkv.{kind}'] = torch.cat((query, key, value))
            mapped[f'{prefix}proj.{kind}'] = mapped.pop(f'{prefix}post_proj.{kind}')
    return swin_keys(mapped)
