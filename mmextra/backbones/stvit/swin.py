"""STViT-R and STViT on Swin."""

import re
from typing import Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, ModuleList
from mmengine.model.weight_init import trunc_normal_
from mmengine.utils import to_2tuple
from mmpretrain.models.backbones.swin_transformer import SwinBlock, SwinBlockSequence
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmextra.backbones.swin_base import INIT_CFG, SwinBackbone, swin_keys
from mmextra.engine.checkpoint import StateDict, register_layout
from mmextra.registry import MODELS

from .blocks import (
    PadMask,
    SemanticAttentionBlock,
    SemanticBlock,
    SemanticRecoveryBlock,
    Size,
    semantic_grid,
)


class ConvPatchEmbed(BaseModule):
    """Patch embedding of two 3x3 convolutions of stride 2, each with BN and Hardswish.

    Images are padded with zeros to whole patches of 4x4, at the right and the bottom.

    Args:
        in_channels (int): Channels of the image.
        embed_dims (int): Channels C of the tokens, even.
        input_size (int | tuple[int]): The usual size of the image in pixels.
    """

    def __init__(self, in_channels: int, embed_dims: int, input_size: Union[int, Size]) -> None:
        super().__init__()
        layer = dict(
            kernel_size=3,
            stride=2,
            padding=1,
            norm_cfg=dict(type='BN'),
            act_cfg=dict(type='HSwish'),
        )
        self.projection = nn.Sequential(
            ConvModule(in_channels, embed_dims // 2, **layer),
            ConvModule(embed_dims // 2, embed_dims, **layer),
        )
        self.init_out_size = tuple(-(-side // 4) for side in to_2tuple(input_size))

    def forward(self, x: Tensor) -> Tuple[Tensor, Size]:
        """Embed images (B, 3, H, W): tokens (B, H/4 * W/4, C) and their grid, rounded up."""
        x = F.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4))
        x = self.projection(x.contiguous(memory_format=torch.channels_last))
        return x.flatten(2).transpose(1, 2), tuple(x.shape[2:])


def call(block: nn.Module, *args) -> Tensor:
    """Call a block."""
    return block(*args)


def recomputed(block: nn.Module, *args) -> Tensor:
    """Call a block so that the backward pass recomputes it."""
    return checkpoint(block, *args, use_reentrant=False)


class DumbbellUnit(BaseModule):
    """Six blocks of the third stage: image tokens, semantic tokens, image tokens again.

    0. a Swin block without shift on image tokens;
    1. a :class:`SemanticAttentionBlock` that pools semantic tokens;
    2. one that updates them, from all image tokens (``'cls'``) or those around them (``'dense'``);
    3. self-attention of the semantic tokens of a window;
    4. self-attention of all semantic tokens;
    5. a :class:`SemanticRecoveryBlock`.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads.
        variant (str): ``'cls'`` or ``'dense'``.
        window_size (int): Side of a window in image tokens.
        sample_size (int): Semantic tokens on a side of a window.
        k_window_sizes (tuple[int]): ``'dense'``: sides of the keys' neighbourhoods of blocks 1 and 2.
        restore_k_window_size (int): ``'dense'``: side of that of block 5, in semantic tokens.
        use_global (bool): ``'cls'``: whether block 2 adds learned global cluster centres to its queries.
        shortcut (bool): ``'cls'``: whether block 1 adds the pooled tokens.
        pad_mask (str | bool): ``'dense'``: see :class:`SemanticAttentionBlock`.
        mlp_ratio (float): Hidden channels of the FFNs over C.
        qkv_bias (bool): Whether queries, keys and values have a bias.
        drop_paths (Sequence[float]): Stochastic depth of each block.
        with_cp (bool): Recompute the blocks in the backward pass.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        variant: str,
        window_size: int,
        sample_size: int,
        k_window_sizes: Size,
        restore_k_window_size: int,
        use_global: bool,
        shortcut: bool,
        pad_mask: PadMask,
        mlp_ratio: float,
        qkv_bias: bool,
        drop_paths: Sequence[float],
        with_cp: bool,
    ) -> None:
        super().__init__()
        dense = variant == 'dense'
        self.with_cp = with_cp
        self.dense = dense

        def common(index: int) -> dict:
            return dict(
                embed_dims=embed_dims,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop_path_rate=drop_paths[index],
            )

        windows = dict(window_size=window_size, sample_size=sample_size, pad_mask=pad_mask)
        self.blocks = ModuleList(
            [
                SwinBlock(
                    embed_dims,
                    num_heads,
                    window_size,
                    ffn_ratio=mlp_ratio,
                    drop_path=drop_paths[0],
                    pad_small_map=dense,
                    attn_cfgs=dict(qkv_bias=qkv_bias),
                ),
                SemanticAttentionBlock(
                    **common(1),
                    **windows,
                    variant=variant,
                    key_size=k_window_sizes[0] if dense else None,
                    shortcut=shortcut,
                ),
                SemanticAttentionBlock(**common(2), **windows, key_size=k_window_sizes[1])
                if dense
                else SemanticBlock(**common(2)),
                SemanticBlock(**common(3), window_size=sample_size),
                SemanticBlock(**common(4)),
                SemanticRecoveryBlock(
                    **common(5), **windows, key_size=restore_k_window_size if dense else None
                ),
            ]
        )
        self.window_size, self.sample_size = window_size, sample_size
        self.global_tokens = None
        if use_global:
            side = 2 * sample_size
            self.global_tokens = nn.Parameter(torch.empty(1, side * side, embed_dims))
            trunc_normal_(self.global_tokens, std=0.02)

    def forward(self, x: Tensor, hw_shape: Size) -> Tensor:
        """Update image tokens (B, H*W, C) of a map (H, W)."""
        run = recomputed if self.with_cp and self.training else call
        base, select, refine, local, among_all, recover = self.blocks
        grid = semantic_grid(hw_shape, self.window_size, self.sample_size)
        x = run(base, x, hw_shape)
        s = run(select, x, hw_shape)
        if self.dense:
            s = run(refine, x, hw_shape, s)
        else:
            query = s if self.global_tokens is None else s + self.global_tokens
            s = run(refine, query, torch.cat((s, x), dim=1))
        s = run(local, s, None, grid)
        s = run(among_all, s)
        return run(recover, x, hw_shape, s)


@MODELS.register_module()
class STViTRSwin(SwinBackbone):
    """STViT-R on Swin: the third stage works on semantic tokens and recovers its map.

    A Swin transformer with a convolutional stem whose third stage is made of :class:`DumbbellUnit` s, six blocks each.
    Its outputs are maps of strides 4, 8, 16 and 32. The parameters of both variants have the same names and shapes.

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'base'``, or a dict with ``embed_dims`` (int), ``depths`` and
            ``num_heads`` (lists of four). The third depth is a multiple of 6. Defaults to ``'small'``.
        variant (str): ``'dense'``, as in the released detectors, for any input size; ``'cls'``, as in the released
            ImageNet classifiers, for images of 224 only (32 x ``window_size``). Defaults to ``'dense'``.
        img_size (int | tuple[int]): The usual size of the image in pixels. Defaults to 224.
        in_channels (int): Channels of the image. Defaults to 3.
        window_size (int): Side of a window, in tokens. Defaults to 7.
        window_sample_size (int): Semantic tokens on a side of a window. Defaults to 3.
        k_window_sizes (tuple[int]): ``'dense'``: sides of the neighbourhoods that find and update semantic tokens, in
            image tokens. Defaults to (14, 21).
        restore_k_window_size (int): ``'dense'``: side of the neighbourhood that recovers image tokens, in semantic
            tokens. Defaults to 27.
        use_global (bool): ``'cls'``: learned global cluster centres. Defaults to False, as released.
        shortcut (bool): ``'cls'``: whether semantic tokens start as the pooled image tokens plus the attention, or as
            the attention alone (then of the order of the LayerScale, 1e-5). Defaults to False, as released; new
            trainings may prefer True.
        pad_mask (str | bool): ``'dense'``: ``'exact'`` hides padding from the attention, ``'published'`` hides what the
            released detectors hide, False lets it take part. Defaults to ``'exact'``.
        mlp_ratio (float): Hidden channels of the FFNs over those of the tokens. Defaults to 4.
        qkv_bias (bool): Whether queries, keys and values have a bias. Defaults to True.
        drop_path_rate (float): Stochastic depth of the last block, rising linearly from 0. Defaults to 0.1.
        out_indices (Sequence[int]): Stages whose normalised output is returned. Defaults to (3, ).
        with_cp (bool): Recompute blocks in the backward pass to save memory. Defaults to False.
        init_cfg (dict | list[dict], optional): Defaults to truncated normal (0.02) linear layers.
        **kwargs: ``drop_rate``, ``frozen_stages`` and ``norm_eval`` of the host's class.

    Raises:
        ValueError: If ``arch``, ``variant`` or ``pad_mask`` is none of the above, or options of one variant are given
            for the other, or of Swin's patch embedding.
    """

    official_layout = 'stvit'

    def __init__(
        self,
        arch: Union[str, dict] = 'small',
        variant: str = 'dense',
        img_size: Union[int, Size] = 224,
        in_channels: int = 3,
        window_size: int = 7,
        window_sample_size: int = 3,
        k_window_sizes: Size = (14, 21),
        restore_k_window_size: int = 27,
        use_global: bool = False,
        shortcut: bool = False,
        pad_mask: PadMask = 'exact',
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.1,
        out_indices: Sequence[int] = (3,),
        with_cp: bool = False,
        init_cfg: Union[dict, list, None] = INIT_CFG,
        **kwargs,
    ) -> None:
        settings = self.settings_of(arch)
        for name in ('patch_size', 'patch_cfg'):
            if name in kwargs:
                raise ValueError(
                    f"{name} is of Swin's patch embedding: here two convolutions of stride 2 make patches of 4 pixels; "
                    'take it out'
                )
        if variant == 'dense' and (use_global or shortcut):
            raise ValueError(
                "use_global and shortcut are options of variant='cls': the dense variant has no fixed number of "
                'semantic tokens and always adds the pooled ones'
            )
        depth = settings['depths'][2]
        blocks = dict(ffn_ratio=mlp_ratio, attn_cfgs=dict(qkv_bias=qkv_bias))
        stage_cfgs = [dict(block_cfgs=blocks) for _ in range(4)]
        stage_cfgs[2] = dict(depth=0, drop_paths=[])  # filled below
        super().__init__(
            settings,
            img_size,
            in_channels=in_channels,
            window_size=window_size,
            drop_path_rate=drop_path_rate,
            out_indices=out_indices,
            with_cp=with_cp,
            pad_small_map=variant == 'dense',
            stage_cfgs=stage_cfgs,
            init_cfg=init_cfg,
            **kwargs,
        )
        self.patch_embed = ConvPatchEmbed(in_channels, self.embed_dims, img_size)
        drop_paths = np.linspace(0, drop_path_rate, sum(self.depths)).tolist()
        first = sum(self.depths[:2])
        self.stages[2].blocks = ModuleList(
            DumbbellUnit(
                4 * self.embed_dims,
                self.num_heads[2],
                variant,
                window_size,
                window_sample_size,
                k_window_sizes,
                restore_k_window_size,
                use_global and i == 0,
                shortcut,
                pad_mask,
                mlp_ratio,
                qkv_bias,
                drop_paths[first + 6 * i : first + 6 * (i + 1)],
                with_cp,
            )
            for i in range(depth // 6)
        )
        self._freeze_stages()

    @classmethod
    def settings_of(cls, arch: Union[str, dict]) -> dict:
        """The settings that a name or a dict stands for."""
        settings = super().settings_of(arch)
        depth = settings['depths'][2]
        if depth % 6 or not depth:
            raise ValueError(
                f'the third stage is made of units of 6 blocks: its depth must be 6, 12, 18, ..., got {depth}'
            )
        return settings

    def get_layer_depth(self, param_name: str, prefix: str = '') -> Tuple[int, int]:
        """Get the layer-wise depth of a parameter.

        Args:
            param_name (str): The name of the parameter.
            prefix (str): What the names of the backbone's parameters begin with. Defaults to ''.

        Returns:
            tuple[int, int]: The depth of the parameter and the number of depths.
        """
        in_unit = re.match(
            r'stages\.2\.blocks\.(\d+)\.(?:blocks\.(\d))?', param_name.removeprefix(prefix)
        )
        if in_unit is None or not param_name.startswith(prefix):
            return super().get_layer_depth(param_name, prefix)
        unit, block = int(in_unit[1]), int(in_unit[2] or 2)  # global tokens belong to block 2
        return sum(self.depths[:2]) + 6 * unit + block + 1, sum(self.depths) + 2


@register_layout('stvit')
def official_keys(state: StateDict) -> StateDict:
    """Map the keys of STViT-R-Swin classifiers and detectors to those of an mm checkpoint."""
    mapped = {}
    for key, value in swin_keys(state).items():
        key = re.sub(
            r'(stages\.2\.blocks\.)(\d+)\.',
            lambda m: f'{m[1]}{int(m[2]) // 6}.blocks.{int(m[2]) % 6}.',
            key,
        )
        key = re.sub(r'layer_scale_1$', 'gamma1.weight', key)
        key = re.sub(r'layer_scale_2$', 'ffn.gamma2.weight', key)
        key = key.replace('stages.2.semantic_token2', 'stages.2.blocks.0.global_tokens')
        key = re.sub(
            r'(patch_embed\.projection\.)(\d)\.(c|bn)\.',
            lambda m: f'{m[1]}{int(m[2]) // 2}.{dict(c="conv", bn="bn")[m[3]]}.',
            key,
        )
        mapped[key] = value
    return mapped


class SemanticStage(SwinBlockSequence):
    """Swin blocks on image tokens, blocks that find semantic tokens, Swin blocks on these.

    Args:
        base, generate, rest (list[nn.Module]): The three kinds of blocks.
        with_cp (bool): Recompute the middle ones in the backward pass.
        **kwargs: Arguments of the host's stage: ``embed_dims``, ``num_heads``, ``downsample``.
    """

    def __init__(self, base: list, generate: list, rest: list, with_cp: bool, **kwargs) -> None:
        super().__init__(depth=0, **kwargs)
        self.blocks = ModuleList([*base, *generate, *rest])
        self.split = (len(base), len(base) + len(generate))
        self.with_cp = with_cp

    def forward(self, x: Tensor, in_shape: Size, do_downsample: bool = True) -> Tuple[Tensor, Size]:
        """Turn image tokens (B, H*W, C) into semantic tokens (B, N, C); return them and their grid."""
        run = recomputed if self.with_cp and self.training else call
        first, last = self.split
        for block in self.blocks[:first]:
            x = block(x, in_shape)
        semantic = None
        for block in self.blocks[first:last]:
            semantic = run(block, x, in_shape, semantic)
        grid = semantic_grid(in_shape, block.window_size, block.sample_size)
        for block in self.blocks[last:]:
            semantic = block(semantic, grid)
        if self.downsample is not None and do_downsample:
            return self.downsample(semantic, grid)
        return semantic, grid


@MODELS.register_module()
class STViTSwin(SwinBackbone):
    """STViT on Swin: from within the third stage on, only semantic tokens are left.

    The paper does not say how the blocks of the third stage are divided, and no code was released. Here two thirds are
    Swin blocks on image tokens, which agrees with the published cost, 24 % below Swin's; two are
    :class:`SemanticAttentionBlock` s in their ``'dense'`` form; the rest and the fourth stage are Swin blocks on
    semantic tokens, with windows of twice ``window_sample_size`` and of ``window_sample_size`` tokens: one window each
    at 224.

    It is a classifier's backbone: the grid of the last two outputs is not that of the image at a whole stride. Use
    :class:`STViTRSwin` for dense tasks.

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'base'`` or a dict, as the host's. Defaults to ``'tiny'``.
        img_size (int | tuple[int]): The usual size of the image in pixels. Defaults to 224.
        patch_size (int): Side of a patch in pixels. Defaults to 4.
        in_channels (int): Channels of the image. Defaults to 3.
        window_size (int): Side of a window, in image tokens. Defaults to 7.
        window_sample_size (int): Semantic tokens on a side of a window. Defaults to 3.
        k_window_sizes (tuple[int]): Sides of the neighbourhoods that find the semantic tokens. Defaults to (14, 21).
        base_blocks (int, optional): Blocks of the third stage on image tokens. Defaults to two thirds.
        pad_mask (str | bool): See :class:`SemanticAttentionBlock`. Defaults to ``'exact'``.
        pad_small_map (bool): What Swin blocks do with maps that are not larger than a window: pad and shift them; or
            never shift, and refuse smaller ones: images have to be larger than 16 * ``window_size`` pixels. Defaults
            to False.
        drop_path_rate (float): Stochastic depth of the last block, rising linearly from 0. Defaults to 0.1.
        out_indices (Sequence[int]): Stages whose normalised output is returned. Defaults to (3, ).
        with_cp (bool): Recompute blocks in the backward pass to save memory. Defaults to False.
        init_cfg (dict | list[dict], optional): Defaults to truncated normal (0.02) linear layers.
        **kwargs: ``drop_rate``, ``frozen_stages`` and ``norm_eval`` of the host's class.

    Raises:
        ValueError: If the third stage is too short.
    """

    def __init__(
        self,
        arch: Union[str, dict] = 'tiny',
        img_size: Union[int, Size] = 224,
        patch_size: int = 4,
        in_channels: int = 3,
        window_size: int = 7,
        window_sample_size: int = 3,
        k_window_sizes: Size = (14, 21),
        base_blocks: Optional[int] = None,
        pad_mask: PadMask = 'exact',
        pad_small_map: bool = False,
        drop_path_rate: float = 0.1,
        out_indices: Sequence[int] = (3,),
        with_cp: bool = False,
        init_cfg: Union[dict, list, None] = INIT_CFG,
        **kwargs,
    ) -> None:
        arch = self.settings_of(arch)
        stage_cfgs = [{}, {}, dict(depth=0, drop_paths=[]), dict(window_size=window_sample_size)]
        super().__init__(
            arch,
            img_size,
            patch_size,
            in_channels,
            window_size,
            drop_path_rate=drop_path_rate,
            out_indices=out_indices,
            with_cp=with_cp,
            pad_small_map=pad_small_map,
            stage_cfgs=stage_cfgs,
            init_cfg=init_cfg,
            **kwargs,
        )
        first, depth = sum(self.depths[:2]), self.depths[2]
        base = 2 * depth // 3 if base_blocks is None else base_blocks
        if not 0 <= base <= depth - len(k_window_sizes):
            raise ValueError(
                f'base_blocks={base} and {len(k_window_sizes)} blocks that find the semantic tokens do not fit a third '
                f'stage of {depth} blocks'
            )
        rates = np.linspace(0, drop_path_rate, sum(self.depths)).tolist()[first : first + depth]
        common = dict(embed_dims=4 * self.embed_dims, num_heads=self.num_heads[2])

        def swin_block(index: int, size: int) -> SwinBlock:
            return SwinBlock(
                **common,
                window_size=size,
                shift=index % 2 == 1,
                drop_path=rates[index],
                pad_small_map=pad_small_map,
                with_cp=with_cp,
            )

        last = base + len(k_window_sizes)
        self.stages[2] = SemanticStage(
            [swin_block(i, window_size) for i in range(base)],
            [
                SemanticAttentionBlock(
                    **common,
                    window_size=window_size,
                    sample_size=window_sample_size,
                    key_size=size,
                    pad_mask=pad_mask,
                    drop_path_rate=rate,
                )
                for size, rate in zip(k_window_sizes, rates[base:last])
            ],
            [swin_block(i, 2 * window_sample_size) for i in range(last, depth)],
            with_cp,
            **common,
            downsample=True,
        )
        self._freeze_stages()
