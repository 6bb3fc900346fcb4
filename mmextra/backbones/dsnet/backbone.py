"""The dual-stream block, the backbone made of it, and the key layout of its published checkpoints."""

import re
from collections import OrderedDict
from typing import List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule, ModuleList
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmextra.backbones.plain_vit import PlainViT
from mmextra.engine.checkpoint import StateDict, register_layout
from mmextra.registry import MODELS


@MODELS.register_module()
class DSBlock(BaseModule):
    r"""Dual-stream block (section 3).

    The channels are split into a global half, resized to 1/r of the map, and a local half. Each is refined within its
    own scale, by self-attention or a depth-wise convolution (section 3.2, intra-scale propagation), then attends to the
    other (section 3.3, inter-scale alignment):

    .. math::
        l' = l + W_l \, \mathrm{softmax}(q_l k_g^T / \sqrt{d}) v_g, \qquad
        g' = g + W_g \, \mathrm{softmax}(q_g k_l^T / \sqrt{d}) v_l

    The self-attention has no output projection. The split is (global, local), the concatenation (local, global).

    Args:
        embed_dims (int): Channels C, even.
        num_heads (int): Heads of all three attentions; a divisor of C / 2.
        reduction (int): The global half is a map of ``H // reduction`` x ``W // reduction``, at least 1 x 1.
        mlp_ratio (float): Hidden channels of the MLP over C; 0 for a block without MLP. Defaults to 4.
        qkv_bias (bool): Whether queries, keys and values have a bias. Defaults to True.
        qk_scale (float, optional): Scale of the logits. Defaults to None, the head's dimension ** -0.5.
        attn_drop_rate (float): Dropout of all attention maps. Defaults to 0.1, which the models were trained with.
        drop_path_rate (float): Stochastic depth of both branches. Defaults to 0.
        conv_ffn (bool): Whether a depth-wise 3x3 convolution follows the MLP's first layer. Defaults to False.
        streams (str): ``'both'``; or, for an ablation, ``'local'`` or ``'global'``: that stream with all the channels,
            and no attention across. Defaults to ``'both'``.
        norm_cfg (dict): Norm of the maps. The tokens of the global stream have layer norms. Defaults to
            ``dict(type='BN')``.
        init_cfg (dict | list[dict], optional): Defaults to truncated normal linear layers with standard deviation 0.02;
            convolutions keep torch's initialisation.

    Raises:
        ValueError: If the channels cannot be split into halves and heads, or ``reduction`` or ``streams`` is not one of
            the above.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        reduction: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: Optional[float] = None,
        attn_drop_rate: float = 0.1,
        drop_path_rate: float = 0.0,
        conv_ffn: bool = False,
        streams: str = 'both',
        norm_cfg: dict = dict(type='BN'),
        init_cfg: Union[dict, list, None] = dict(
            type='TruncNormal', layer='Linear', std=0.02, bias=0.0
        ),
    ) -> None:
        super().__init__(init_cfg)
        if streams not in ('both', 'local', 'global'):
            raise ValueError(f"streams must be 'both', 'local' or 'global', got {streams!r}")
        if reduction < 1:
            raise ValueError(f'reduction must be at least 1, got {reduction}')
        dims = embed_dims // 2 if streams == 'both' else embed_dims
        if streams == 'both' and embed_dims % 2:
            raise ValueError(
                f'embed_dims must be even, to be split into halves that attend to each other, got {embed_dims}'
            )
        if streams != 'local' and dims % num_heads:
            raise ValueError(
                f'the {dims} channels of the global stream are no multiple of num_heads={num_heads}: change '
                f'embed_dims={embed_dims} or num_heads'
            )
        self.num_heads = num_heads
        self.reduction = reduction
        self.scale = qk_scale or (dims / num_heads) ** -0.5
        self.attn_drop_rate = attn_drop_rate
        self.streams = streams

        def norm(channels: int) -> nn.Module:
            return build_norm_layer(norm_cfg, channels)[1]

        # mmcv's `fuse_conv_bn` folds a norm into the convolution registered last before it. Here norms come before
        # convolutions, so all are registered first.
        self.norm1 = norm(embed_dims)
        if streams != 'global':
            self.local_norm = norm(dims)
        if streams == 'both':
            self.local_cross_norm = norm(dims)
        if mlp_ratio:
            self.norm2 = norm(embed_dims)
        self.pos_conv = nn.Conv2d(embed_dims, embed_dims, 3, padding=1, groups=embed_dims)
        self.conv_in = nn.Conv2d(embed_dims, embed_dims, 1)
        if streams != 'global':
            self.local_conv = nn.Conv2d(dims, dims, 3, padding=1, groups=dims)
        if streams != 'local':
            self.global_norm = nn.LayerNorm(dims)
            self.global_qkv = nn.Linear(dims, 3 * dims, bias=qkv_bias)
        if streams == 'both':
            self.local_cross_qkv = nn.Conv2d(dims, 3 * dims, 1, bias=qkv_bias)
            self.local_fuse = nn.Linear(dims, dims)
            self.global_cross_norm = nn.LayerNorm(dims)
            self.global_cross_qkv = nn.Linear(dims, 3 * dims, bias=qkv_bias)
            self.global_fuse = nn.Linear(dims, dims)
        self.conv_out = nn.Conv2d(embed_dims, embed_dims, 1)
        self.drop_path = DropPath(drop_path_rate)
        if mlp_ratio:
            hidden = int(embed_dims * mlp_ratio)
            layers = OrderedDict(fc1=nn.Conv2d(embed_dims, hidden, 1))
            if conv_ffn:
                layers['dwconv'] = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
            layers.update(act=nn.GELU(), fc2=nn.Conv2d(hidden, embed_dims, 1))
            self.mlp = nn.Sequential(layers)
        else:
            self.mlp = None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to a map (B, C, H, W) of any size."""
        x = x + self.pos_conv(x)
        streams = self.mix(self.conv_in(self.norm1(x)))
        x = x + self.drop_path(self.conv_out(streams))
        if self.mlp is not None:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x

    def mix(self, z: Tensor) -> Tensor:
        """Run the streams: what lies between the two 1x1 convolutions.

        Args:
            z (Tensor): (B, C, H, W), global half first.

        Returns:
            Tensor: (B, C, H, W), local half first.
        """
        if self.streams == 'local':
            return self.propagate_local(z)
        size = z.shape[-2:]
        grid = tuple(max(side // self.reduction, 1) for side in size)
        if self.streams == 'global':
            tokens = self.propagate_global(resize(z, grid))
            return resize(to_map(tokens, grid), size)
        coarse, fine = z.chunk(2, dim=1)
        fine = self.propagate_local(fine)  # (B, C/2, H, W)
        tokens = self.propagate_global(resize(coarse, grid))  # (B, h * w, C/2)
        fine, tokens = self.align(fine, tokens)
        return torch.cat((fine, resize(to_map(tokens, grid), size)), dim=1)

    def propagate_local(self, fine: Tensor) -> Tensor:
        """Refine the local stream within its own scale: a map to a map of the same size."""
        return fine + self.local_conv(self.local_norm(fine))

    def propagate_global(self, coarse: Tensor) -> Tensor:
        """Refine the global stream within its own scale: a map to tokens (B, h * w, C/2)."""
        tokens = to_tokens(coarse)
        return tokens + self.attend(*self.split_heads(self.global_qkv(self.global_norm(tokens))))

    def align(self, fine: Tensor, tokens: Tensor) -> Tuple[Tensor, Tensor]:
        """Let both streams attend to each other as they were before: a map and tokens to the same."""
        qkv = self.local_cross_qkv(self.local_cross_norm(fine))
        local_q, local_k, local_v = self.split_heads(to_tokens(qkv))
        qkv = self.global_cross_qkv(self.global_cross_norm(tokens))
        global_q, global_k, global_v = self.split_heads(qkv)
        from_global = self.local_fuse(self.attend(local_q, global_k, global_v))
        from_local = self.global_fuse(self.attend(global_q, local_k, local_v))
        return fine + to_map(from_global, fine.shape[-2:]), tokens + from_local

    def split_heads(self, qkv: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Views of (B, N, 3C) as queries, keys and values, (B, heads, N, d) each."""
        return qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of all heads (B, heads, N, d), with their values side by side: (B, N, C)."""
        drop = self.attn_drop_rate if self.training else 0.0
        if drop and q.device.type == 'cpu':  # where torch has no fused kernel with dropout
            out = F.dropout(((q * self.scale) @ k.mT).softmax(-1), drop) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=drop, scale=self.scale)
        return out.transpose(1, 2).flatten(2)


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H * W, C); a view where the channels come last in memory."""
    return x.flatten(2).mT


def to_map(tokens: Tensor, size: Tuple[int, int]) -> Tensor:
    """(B, H * W, C) to (B, C, H, W), as a view."""
    return tokens.mT.unflatten(2, size)


def resize(x: Tensor, size: Tuple[int, int]) -> Tensor:
    """Bilinear interpolation of a map, without smoothing before it is made smaller."""
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size, mode='bilinear', align_corners=False)


def _arch(depths: Sequence[int]) -> dict:
    """Settings of a model of the paper."""
    return dict(embed_dims=(64, 128, 320, 512), depths=depths, num_heads=(1, 2, 5, 8))


@MODELS.register_module()
class DSNet(BaseBackbone):
    """Backbone of four stages of dual-stream blocks, with maps of strides 4, 8, 16 and 32.

    Args:
        arch (str | dict): ``'t'``, ``'s'`` or ``'b'``, the models of the paper, or a dict of four numbers for each of

            - **embed_dims**: channels of the stages, even;
            - **depths**: blocks of the stages;
            - **num_heads**: heads of the stages;

            and optionally **mlp_ratio** (float). Defaults to ``'s'``.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Stages whose map is returned, from 0. Stages after the last of them do not run.
            Defaults to ``(3,)``.
        reductions (Sequence[int]): For each stage, the side of its map over the side of the global stream's. Defaults
            to ``(8, 4, 2, 2)``, as in the code of the published models. In the text the global stream has 1/32 of the
            image everywhere, which would be 1 in the last stage.
        attn_drop_rate (float): Dropout of the attention maps. The models were trained with 0.1, which their code holds
            fixed. Defaults to 0.1.
        drop_path_rate (float): Stochastic depth of the last block. Defaults to 0.
        dpr_mode (str): How the rates rise from 0: ``'cumulative'``, linearly over all blocks, or ``'published'``, as in
            the models' code, where every stage starts again at the first rate. Defaults to ``'cumulative'``.
        qkv_bias (bool): See :class:`DSBlock`. Defaults to True.
        qk_scale (float, optional): See :class:`DSBlock`. Defaults to None.
        overlap_embed (bool): Whether the convolutions between stages overlap, 7x7 of stride 4 and 3x3 of stride 2,
            rather than 4x4 and 2x2. Defaults to False.
        conv_ffn (bool): See :class:`DSBlock`. Defaults to False.
        streams (str): See :class:`DSBlock`. Defaults to ``'both'``.
        final_norm (bool): Whether the last stage's map is normalised. Defaults to True.
        norm_cfg (dict): Norm of the maps. Defaults to ``dict(type='BN')``.
        frozen_stages (int): The first convolution and so many stages are frozen and stay in eval mode. Defaults to -1,
            none.
        norm_eval (bool): Whether all batch norms stay in eval mode. Defaults to False.
        with_cp (bool): Recompute the blocks in the backward pass to save memory. Defaults to False.
        init_cfg (dict | list[dict], optional): How to initialise, besides the blocks' own. Defaults to None.

    Raises:
        ValueError: If ``arch`` is unknown, incomplete or has other keys, or ``out_indices``, ``reductions``,
            ``dpr_mode`` or ``frozen_stages`` is not what the above says.
    """

    arch_zoo = {'t': _arch((2, 2, 4, 1)), 's': _arch((3, 4, 8, 3)), 'b': _arch((3, 4, 28, 3))}
    official_layout = 'dsnet'

    def __init__(
        self,
        arch: Union[str, dict] = 's',
        in_channels: int = 3,
        out_indices: Sequence[int] = (3,),
        reductions: Sequence[int] = (8, 4, 2, 2),
        attn_drop_rate: float = 0.1,
        drop_path_rate: float = 0.0,
        dpr_mode: str = 'cumulative',
        qkv_bias: bool = True,
        qk_scale: Optional[float] = None,
        overlap_embed: bool = False,
        conv_ffn: bool = False,
        streams: str = 'both',
        final_norm: bool = True,
        norm_cfg: dict = dict(type='BN'),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: Union[dict, list, None] = None,
    ) -> None:
        super().__init__(init_cfg)
        settings = self.settings_of(arch)
        dims, self.depths = settings['embed_dims'], settings['depths']
        if len(reductions) != 4:
            raise ValueError(f'reductions must be four numbers, got {reductions}')
        if not out_indices or not all(0 <= i < 4 for i in out_indices):
            raise ValueError(f'out_indices must be some of 0, 1, 2, 3, got {out_indices}')
        if not -1 <= frozen_stages <= 4:
            raise ValueError(f'frozen_stages must lie in [-1, 4], got {frozen_stages}')
        self.out_indices = out_indices
        self.overlap_embed = overlap_embed
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp

        self.patch_embeds = ModuleList()
        self.stages = ModuleList()
        rates = self.drop_path_rates(drop_path_rate, dpr_mode)
        for i in range(4):
            stride = 2 if i else 4
            kernel = 2 * stride - 1 if overlap_embed else stride
            padding = kernel // 2 if overlap_embed else 0
            source = dims[i - 1] if i else in_channels
            self.patch_embeds.append(nn.Conv2d(source, dims[i], kernel, stride, padding))
            self.stages.append(
                ModuleList(
                    DSBlock(
                        dims[i],
                        settings['num_heads'][i],
                        reductions[i],
                        mlp_ratio=settings.get('mlp_ratio', 4.0),
                        qkv_bias=qkv_bias,
                        qk_scale=qk_scale,
                        attn_drop_rate=attn_drop_rate,
                        drop_path_rate=rate,
                        conv_ffn=conv_ffn,
                        streams=streams,
                        norm_cfg=norm_cfg,
                    )
                    for rate in rates[i]
                )
            )
        self.norm = build_norm_layer(norm_cfg, dims[3])[1] if final_norm else nn.Identity()
        self._freeze_stages()

    @classmethod
    def settings_of(cls, arch: Union[str, dict]) -> dict:
        """The settings that a name or a dict stands for."""
        if isinstance(arch, str):
            if arch.lower() not in cls.arch_zoo:
                raise ValueError(f'arch {arch!r} is unknown, choose from {sorted(cls.arch_zoo)}')
            return cls.arch_zoo[arch.lower()]
        for key in ('embed_dims', 'depths', 'num_heads'):
            if len(arch.get(key, ())) != 4:
                raise ValueError(f'arch[{key!r}] must be four numbers, got {arch.get(key)}')
        unknown = set(arch) - {'embed_dims', 'depths', 'num_heads', 'mlp_ratio'}
        if unknown:
            raise ValueError(
                f'arch has keys that are unknown: {sorted(unknown)}; known are embed_dims, depths, num_heads and '
                'mlp_ratio'
            )
        return arch

    def drop_path_rates(self, rate: float, mode: str) -> List[List[float]]:
        """The rate of every block, by stage; see ``dpr_mode``."""
        if mode not in ('cumulative', 'published'):
            raise ValueError(f"dpr_mode must be 'cumulative' or 'published', got {mode!r}")
        rates = np.linspace(0, rate, sum(self.depths)).tolist()
        starts = [sum(self.depths[:i]) if mode == 'cumulative' else 0 for i in range(4)]
        return [rates[start : start + depth] for start, depth in zip(starts, self.depths)]

    def train(self, mode: bool = True) -> 'DSNet':
        """Set the mode; what is frozen stays in eval mode."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages >= 0:
            embeds, stages = (
                part[: self.frozen_stages] for part in (self.patch_embeds, self.stages)
            )
            for part in (self.patch_embeds[0], *embeds, *stages):
                part.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Extract features.

        Args:
            x (Tensor): Images (B, in_channels, H, W) of any size; padded to a multiple of 4 at the right and the
                bottom.

        Returns:
            tuple[Tensor]: For each of ``out_indices``, in the order of the stages, (B, C, H/s, W/s) with s = 4, 8, 16,
            32, rounded down after the first stage, but at least 1.
        """
        # The depth-wise convolutions are faster with the channels last, and the tokens are views.
        x = x.contiguous(memory_format=torch.channels_last)
        outs = []
        for i in range(max(self.out_indices) + 1):
            x = self.embed(i, x)
            for block in self.stages[i]:
                x = self.maybe_checkpoint(block, x)
            if i in self.out_indices:
                outs.append(self.norm(x) if i == 3 else x)
        return tuple(outs)

    # Only the attributes `with_cp` and `training` are asked for.
    maybe_checkpoint = PlainViT.maybe_checkpoint

    def embed(self, stage: int, x: Tensor) -> Tensor:
        """Convolve an image, or the previous stage's map, down to the size of a stage."""
        conv = self.patch_embeds[stage]
        height, width = x.shape[-2:]
        if not self.overlap_embed:  # odd maps lose their last row or column; maps must not vanish
            below, right = (
                max(2 - side, 0) if stage else -side % conv.stride[0] for side in (height, width)
            )
            x = F.pad(x, (0, right, 0, below)) if below or right else x
        return conv(x)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> Tuple[int, int]:
        """The depth of a parameter, for learning rates that decay with it.

        Args:
            param_name (str): Name of the parameter.
            prefix (str): What stands before the names of the backbone's parameters. Defaults to ''.

        Returns:
            tuple[int, int]: 0 for the first convolution, then the number of the block, counted over all stages; the
            convolution between two stages belongs to the block after it. And the number of depths.
        """
        last = sum(self.depths) + 1
        part, stage, block, *_ = (*param_name.removeprefix(prefix).split('.'), '', '')
        if not param_name.startswith(prefix) or part not in ('patch_embeds', 'stages'):
            return last, last + 1
        if part == 'patch_embeds':
            return (sum(self.depths[: int(stage)]) + 1 if int(stage) else 0), last + 1
        return sum(self.depths[: int(stage)]) + int(block) + 1, last + 1


# The authors of the known checkpoints call the parts of a block otherwise.
BLOCK_KEYS = {
    'pos_embed': 'pos_conv',
    'conv1': 'conv_in',
    'norm_conv1': 'local_norm',
    'conv': 'local_conv',
    'norm_sa1': 'global_norm',
    'channel_up': 'global_qkv',
    'norm_conv2': 'local_cross_norm',
    'cross_channel_up_conv': 'local_cross_qkv',
    'fuse_channel_conv': 'local_fuse',
    'norm_sa2': 'global_cross_norm',
    'cross_channel_up_sa': 'global_cross_qkv',
    'fuse_channel_sa': 'global_fuse',
    'conv2': 'conv_out',
}


@register_layout('dsnet')
def dsnet_keys(state: StateDict) -> StateDict:
    """Map the keys of SteveTsui/DS-Net or PaddleClas, of a whole model or of one block, to ours."""
    if any(key.endswith('._mean') for key in state):
        state = from_paddle(state)
    mapped = {}
    for key, value in state.items():
        key = re.sub(
            r'^patch_embed(\d)\.proj\.', lambda m: f'backbone.patch_embeds.{int(m[1]) - 1}.', key
        )
        key = re.sub(r'^blocks(\d)\.', lambda m: f'backbone.stages.{int(m[1]) - 1}.', key)
        key = re.sub(r'^norm\.', 'backbone.norm.', key)
        key = re.sub(r'^head\.', 'head.fc.', key)
        key = key.replace('.dwconv.dwconv.', '.dwconv.')
        path = re.match(r'(backbone\.stages\.\d+\.\d+\.)?(\w+)(.*)', key)
        mapped[(path[1] or '') + BLOCK_KEYS.get(path[2], path[2]) + path[3]] = value
    return mapped


def from_paddle(state: StateDict) -> StateDict:
    """Paddle's names of batch statistics and its transposed linear weights, as torch has them."""
    mapped = {}
    for key, value in state.items():
        path, _, name = key.rpartition('.')
        is_linear = re.search(r'(^head|channel_up|cross_channel_up_sa|fuse_channel_\w+)$', path)
        mapped[f'{path}.' + dict(_mean='running_mean', _variance='running_var').get(name, name)] = (
            value.T if is_linear and name == 'weight' else value
        )
        if name == '_mean':
            mapped[f'{path}.num_batches_tracked'] = torch.tensor(0)
    return mapped
