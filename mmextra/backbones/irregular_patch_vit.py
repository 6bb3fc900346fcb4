"""Exploring and Improving Mobile Level Vision Transformers. arXiv 2108.13015, 2021.

A vision transformer for a few hundred million multiply-adds: uniform blocks, fed with few, rich patches of several
sizes ("irregular") out of a convolutional stem, and a learned fusion of all tokens in the place of the class token. The
paper has no public code; widths, strides and the form of the fusion are our reading of it.

Registered here: ``IrregularPatchEmbed``, ``AdaptivePatchFusion`` and the backbone ``IrregularPatchViT``.
"""

from typing import List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, ModuleList
from mmengine.model.weight_init import trunc_normal_
from mmengine.utils import to_2tuple
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmpretrain.models.utils import InvertedResidual, SELayer, build_norm_layer
from torch import Tensor, nn

from mmextra.backbones.plain_vit import PlainViT, resize_tokens
from mmextra.engine.checkpoint import StateDict, is_checkpoint_init
from mmextra.registry import MODELS

Grid = Tuple[int, int]
BranchStride = Union[int, str]
BN = dict(type='BN')
HARDSWISH = dict(type='HSwish', inplace=True)


def squeeze_excite(channels: int) -> dict:
    """Settings of an ``SELayer`` that squeezes to a quarter of the channels."""
    return dict(channels=channels, squeeze_channels=channels // 4)


def inverted_residual(
    in_channels: int, out_channels: int, expand: int, kernel_size: int, stride: int, se: bool
) -> InvertedResidual:
    """The host's inverted residual block, with hard swish."""
    mid = in_channels * expand
    return InvertedResidual(
        in_channels,
        out_channels,
        mid,
        kernel_size,
        stride,
        se_cfg=squeeze_excite(mid) if se else None,
        norm_cfg=BN,
        act_cfg=HARDSWISH,
    )


class Branch(nn.Module):
    """The part of an inverted residual block after its expansion: one size of patches.

    Args:
        in_channels (int): Channels after the expansion.
        out_channels (int): Channels of the tokens.
        stride (int | str): Even, or 1; ``'global'`` for a single token.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: BranchStride) -> None:
        super().__init__()
        step = 1 if stride == 'global' else stride
        kernel_size = max(step + 1, 3)  # odd, so that a side of n gives ceil(n / stride)
        self.depthwise_conv = ConvModule(
            in_channels,
            in_channels,
            kernel_size,
            step,
            kernel_size // 2,
            groups=in_channels,
            norm_cfg=BN,
            act_cfg=HARDSWISH,
        )
        self.se = SELayer(**squeeze_excite(in_channels))
        self.pool = nn.AdaptiveAvgPool2d(1) if stride == 'global' else nn.Identity()
        self.linear_conv = ConvModule(in_channels, out_channels, 1, norm_cfg=BN, act_cfg=None)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) to (B, C, ceil(h / stride), ceil(w / stride))."""
        return self.linear_conv(self.pool(self.se(self.depthwise_conv(x))))


@MODELS.register_module()
class IrregularPatchEmbed(BaseModule):
    """Irregular patch embedding: a light stem to stride 16, then patches of several sizes side by side.

    Every branch is an inverted residual block with squeeze-and-excitation. The expansions of all branches have the same
    input and are one convolution.

    Args:
        embed_dims (int): Channels C of the tokens.
        stem_channels (Sequence[int]): Widths of the stem at strides 2, 4, 8 and 16.
        in_channels (int): Channels of the image. Defaults to 3.
        branch_strides (Sequence[int | str]): For each branch the stride on top of 16: an even number, or 1, or
            ``'global'`` for a single token. Defaults to ``(2, 4, 'global')``: 7x7, 4x4 and 1 token of an image of 224.
            A global branch has batch statistics over the images alone, so training needs more than one of them.
        init_cfg (dict | list[dict], optional): Defaults to convolutions with Kaiming's normal initialisation (fan-out).

    Raises:
        ValueError: If there are not four widths, or no branch, or a stride is none of the above.
    """

    def __init__(
        self,
        embed_dims: int,
        stem_channels: Sequence[int],
        in_channels: int = 3,
        branch_strides: Sequence[BranchStride] = (2, 4, 'global'),
        init_cfg: Union[dict, list, None] = [
            dict(type='Kaiming', layer='Conv2d', mode='fan_out', nonlinearity='relu'),
            dict(type='Constant', layer='_BatchNorm', val=1.0),
        ],
    ) -> None:
        super().__init__(init_cfg)
        if len(stem_channels) != 4 or min(stem_channels) < 1:
            raise ValueError(
                f'stem_channels must be four widths, for strides 2 to 16; got {stem_channels}'
            )
        if not branch_strides:
            raise ValueError('branch_strides must name at least one branch')
        for stride in branch_strides:
            if stride != 'global' and not (
                isinstance(stride, int) and (stride == 1 or (stride > 0 and stride % 2 == 0))
            ):
                raise ValueError(
                    f"branch_strides must be even numbers, 1 or 'global', got {stride!r}"
                )
        a, b, c, d = stem_channels
        self.stages = ModuleList(
            [
                nn.Sequential(
                    ConvModule(in_channels, a, 3, 2, 1, norm_cfg=BN, act_cfg=HARDSWISH),
                    inverted_residual(a, a, 1, 3, 1, se=False),
                ),
                nn.Sequential(
                    inverted_residual(a, b, 4, 3, 2, se=False),
                    inverted_residual(b, b, 3, 3, 1, se=False),
                ),
                nn.Sequential(
                    inverted_residual(b, c, 3, 5, 2, se=True),
                    inverted_residual(c, c, 3, 5, 1, se=True),
                ),
                nn.Sequential(
                    inverted_residual(c, d, 6, 3, 2, se=True),
                    inverted_residual(d, d, 3, 3, 1, se=True),
                ),
            ]
        )
        self.branch_strides = tuple(branch_strides)
        self.expand_conv = ConvModule(
            d, 3 * d * len(branch_strides), 1, norm_cfg=BN, act_cfg=HARDSWISH
        )
        self.branches = ModuleList(Branch(3 * d, embed_dims, stride) for stride in branch_strides)

    def forward(self, x: Tensor) -> Tuple[Tensor, List[Grid], List[Tensor]]:
        """Embed images.

        Args:
            x (Tensor): (B, in_channels, H, W) of any size.

        Returns:
            tuple: The tokens (B, N, C), branch by branch and row by row; the grid (rows, columns) of each branch; and
            the maps of the stem at strides 4, 8 and 16.
        """
        x = x.contiguous(memory_format=torch.channels_last)  # depth-wise convolutions are faster so
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        parts = self.expand_conv(x).chunk(len(self.branches), dim=1)
        patches = [branch(part) for branch, part in zip(self.branches, parts)]
        tokens = torch.cat([p.flatten(2).mT for p in patches], dim=1)
        return tokens, [tuple(p.shape[2:]) for p in patches], maps[1:]

    def grids(self, img_size: Grid) -> List[Grid]:
        """The grid of each branch for an image of the given size in pixels."""
        sides = [-(-side // 16) for side in img_size]
        return [
            (1, 1) if stride == 'global' else tuple(-(-side // stride) for side in sides)
            for stride in self.branch_strides
        ]


def resize_grids(x: Tensor, source: Sequence[Grid], target: Sequence[Grid]) -> Tensor:
    """Resize what is learned for each token (1, N, C) of several grids to other grids, each on its own."""
    if list(source) == list(target):
        return x
    parts = x.split([rows * columns for rows, columns in source], dim=1)
    return torch.cat([resize_tokens(*grid) for grid in zip(parts, source, target)], dim=1)


@MODELS.register_module()
class AdaptivePatchFusion(BaseModule):
    r"""Adaptive patch fusion: a weighted mean of all tokens, in the place of a class token.

    A token t has two weights: one for its place, shared by all images, and one that it says itself. Their product,
    normalised over the tokens, is a softmax:

    .. math:: w = \mathrm{softmax}_n(g_n + \mathrm{MLP}(t_n)), \qquad y = \sum_n w_n t_n

    Training starts at the plain mean. As a neck it follows a backbone with ``out_type='raw'``.

    Args:
        embed_dims (int): Channels C, at least 4.
        num_tokens (int): Number N of tokens.
        norm_cfg (dict, optional): Norm of the tokens; None if they are normalised already. Defaults to
            ``dict(type='LN', eps=1e-6)``.
        init_cfg (dict | list[dict], optional): Defaults to truncated normal linear layers with standard deviation 0.02,
            but for the last one, which is 0.
    """

    def __init__(
        self,
        embed_dims: int,
        num_tokens: int,
        norm_cfg: Optional[dict] = dict(type='LN', eps=1e-6),
        init_cfg: Union[dict, list, None] = [
            dict(
                type='TruncNormal',
                layer='Linear',
                std=0.02,
                bias=0.0,
                override=dict(type='Constant', name='score', val=0.0, bias=0.0),
            ),
        ],
    ) -> None:
        super().__init__(init_cfg)
        self.norm = build_norm_layer(norm_cfg, embed_dims) if norm_cfg else nn.Identity()
        self.place = nn.Parameter(torch.zeros(1, num_tokens, 1))
        self.hidden = nn.Linear(embed_dims, embed_dims // 4)
        self.score = nn.Linear(embed_dims // 4, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(
        self, x: Union[Tensor, Tuple[Tensor, ...]], place: Optional[Tensor] = None
    ) -> Union[Tensor, Tuple[Tensor, ...]]:
        """Fuse tokens.

        Args:
            x (Tensor | tuple[Tensor]): (B, N, C), or a tuple of such.
            place (Tensor, optional): The shared logits (1, N, 1), where they had to be resized to the tokens. Defaults
                to those that were learned.

        Returns:
            Tensor | tuple[Tensor]: (B, C), or a tuple of such.

        Raises:
            ValueError: If there are not as many tokens as shared logits.
        """
        if isinstance(x, tuple):
            return tuple(self.forward(tokens, place) for tokens in x)
        place = self.place if place is None else place
        if x.shape[1] != place.shape[1]:
            raise ValueError(
                f'{x.shape[1]} tokens for {place.shape[1]} places. For images of another size, let the backbone fuse '
                "the tokens (out_type='fused'), which knows their grids"
            )
        x = self.norm(x)
        weights = self.weights(x, place)  # (B, N, 1)
        return (weights.mT @ x).squeeze(1)

    def weights(self, x: Tensor, place: Tensor) -> Tensor:
        """The weights (B, N, 1) of normalised tokens (B, N, C); they sum to one."""
        return (place + self.score(F.gelu(self.hidden(x)))).softmax(dim=1)


def _arch(
    embed_dims: int, num_layers: int, num_heads: int, stem_channels: Tuple[int, int, int, int]
) -> dict:
    """Settings of a model."""
    return dict(
        embed_dims=embed_dims,
        num_layers=num_layers,
        num_heads=num_heads,
        stem_channels=stem_channels,
    )


@MODELS.register_module()
class IrregularPatchViT(BaseBackbone):
    """Mobile-level vision transformer with irregular patches and adaptive patch fusion.

    Args:
        arch (str | dict): ``'s'``, ``'m'`` or ``'l'``, for about 150, 300 and 600 million multiply-adds, or a dict of

            - **embed_dims** (int): channels C of the tokens;
            - **num_layers** (int): blocks;
            - **num_heads** (int): heads of a block's attention;
            - **stem_channels** (Sequence[int]): widths of the stem at strides 2, 4, 8 and 16.

            Defaults to ``'m'``.
        img_size (int | tuple[int]): The usual size of the image in pixels; what is learned for places is resized for
            others. Defaults to 224.
        in_channels (int): Channels of the image. Defaults to 3.
        out_type (str): ``'fused'``, one vector of each image; ``'raw'``, the tokens, not normalised, for the neck
            :class:`AdaptivePatchFusion`; or ``'featmap'``, maps for detectors and segmentors. Defaults to ``'fused'``.
        out_indices (int | Sequence[int]): What is returned: 3 is the output of the first block, 4 of the second, and so
            on; -1 of the last. 0, 1 and 2 are the stem's maps of strides 4, 8 and 16, for ``'featmap'`` alone.
            ``(0, 1, 2, -1)`` makes a pyramid. Defaults to -1.
        branch_strides (Sequence[int | str]): See :class:`IrregularPatchEmbed`. The map of a block is that of the first
            branch, of stride 32. Defaults to ``(2, 4, 'global')``.
        fusion (str): How ``'fused'`` makes one vector: ``'apf'``, :class:`AdaptivePatchFusion`; for ablations
            ``'mean'``, or ``'cls_token'``, an additional token. Defaults to ``'apf'``.
        use_pos (bool): Whether positions are learned. Defaults to True.
        drop_path_rate (float): Stochastic depth of the last block, rising linearly from 0. Models of this size do not
            need it. Defaults to 0.
        norm_cfg (dict): Norm of the tokens. Defaults to ``dict(type='LN', eps=1e-6)``.
        frozen_stages (int): The patch embedding, the positions and so many blocks are frozen and stay in eval mode.
            Defaults to -1, none.
        with_cp (bool): Recompute the blocks in the backward pass to save memory. Defaults to False.
        init_cfg (dict | list[dict], optional): How to initialise, besides the parts' own. Defaults to None.

    Raises:
        ValueError: If an argument is not one of the above, or ``'featmap'`` finds no grid in the first branch.
    """

    arch_zoo = {
        's': _arch(192, 3, 3, (16, 24, 32, 64)),
        'm': _arch(256, 4, 4, (16, 24, 40, 96)),
        'l': _arch(384, 4, 6, (24, 32, 56, 128)),
    }
    OUT_TYPES = ('fused', 'raw', 'featmap')
    FUSIONS = ('apf', 'mean', 'cls_token')
    STEM_MAPS = 3

    def __init__(
        self,
        arch: Union[str, dict] = 'm',
        img_size: Union[int, Grid] = 224,
        in_channels: int = 3,
        out_type: str = 'fused',
        out_indices: Union[int, Sequence[int]] = -1,
        branch_strides: Sequence[BranchStride] = (2, 4, 'global'),
        fusion: str = 'apf',
        use_pos: bool = True,
        drop_path_rate: float = 0.0,
        norm_cfg: dict = dict(type='LN', eps=1e-6),
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: Union[dict, list, None] = None,
    ) -> None:
        super().__init__(init_cfg)
        settings = self.settings_of(arch)
        dims, depth = settings['embed_dims'], settings['num_layers']
        if out_type not in self.OUT_TYPES:
            raise ValueError(f'out_type must be one of {self.OUT_TYPES}, got {out_type!r}')
        if fusion not in self.FUSIONS:
            raise ValueError(f'fusion must be one of {self.FUSIONS}, got {fusion!r}')
        if out_type == 'featmap' and (not branch_strides or branch_strides[0] == 'global'):
            raise ValueError(
                f"out_type='featmap' takes the grid of the first branch, got branch_strides={branch_strides}"
            )
        if not -1 <= frozen_stages <= depth:
            raise ValueError(f'frozen_stages must lie in [-1, {depth}], got {frozen_stages}')
        self.out_type = out_type
        self.out_indices = self._resolve(out_indices, self.STEM_MAPS + depth)
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp

        self.patch_embed = IrregularPatchEmbed(
            dims, settings['stem_channels'], in_channels, branch_strides
        )
        self.grids = self.patch_embed.grids(to_2tuple(img_size))
        num_tokens = sum(rows * columns for rows, columns in self.grids)
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, dims)) if use_pos else None
        self.layers = ModuleList(
            TransformerEncoderLayer(
                dims, settings['num_heads'], 4 * dims, drop_path_rate=rate, norm_cfg=norm_cfg
            )
            for rate in np.linspace(0, drop_path_rate, depth).tolist()
        )
        self.norm = nn.Identity() if out_type == 'raw' else build_norm_layer(norm_cfg, dims)
        self.cls_token = self.fusion = None
        if out_type == 'fused' and fusion == 'apf':
            self.fusion = AdaptivePatchFusion(dims, num_tokens, norm_cfg=None)
        elif out_type == 'fused' and fusion == 'cls_token':
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dims))
        self._register_load_state_dict_pre_hook(self._resize_loaded_places)
        self._freeze_stages()

    def _resize_loaded_places(self, state_dict: StateDict, prefix: str, *args) -> None:
        """Fit what a checkpoint of another, square, image size learned for places before it is loaded."""
        known = (self.patch_embed.grids((side, side)) for side in range(16, 4097, 16))
        by_count = {sum(rows * columns for rows, columns in grids): grids for grids in known}
        by_count[sum(rows * columns for rows, columns in self.grids)] = self.grids
        for name in (f'{prefix}pos_embed', f'{prefix}fusion.place'):
            source = by_count.get(state_dict[name].shape[1]) if name in state_dict else None
            if source is not None:
                state_dict[name] = resize_grids(state_dict[name], source, self.grids)

    @classmethod
    def settings_of(cls, arch: Union[str, dict]) -> dict:
        """The settings that a name or a dict stands for."""
        if isinstance(arch, str):
            if arch.lower() not in cls.arch_zoo:
                raise ValueError(f'arch {arch!r} is unknown, choose from {sorted(cls.arch_zoo)}')
            return cls.arch_zoo[arch.lower()]
        missing, unknown = set(cls.arch_zoo['m']) - set(arch), set(arch) - set(cls.arch_zoo['m'])
        if missing:
            raise ValueError(f'arch lacks {sorted(missing)}; given: {sorted(arch)}')
        if unknown:
            raise ValueError(
                f'arch has keys that are unknown: {sorted(unknown)}; known are {sorted(cls.arch_zoo["m"])}'
            )
        if arch['embed_dims'] % arch['num_heads']:
            raise ValueError(
                f'embed_dims={arch["embed_dims"]} is no multiple of num_heads={arch["num_heads"]}'
            )
        return arch

    def _resolve(self, indices: Union[int, Sequence[int]], count: int) -> List[int]:
        """Indices from 0, in order."""
        indices = [indices] if isinstance(indices, int) else list(indices)
        lowest = 0 if self.out_type == 'featmap' else self.STEM_MAPS
        found = sorted(i + count if i < 0 else i for i in indices)
        if not found or found[0] < lowest or found[-1] >= count:
            raise ValueError(
                f'out_indices must lie in [{lowest}, {count}) for out_type={self.out_type!r}, or count from the end; '
                f'got {indices}'
            )
        return found

    def init_weights(self) -> None:
        """Initialise the weights, unless ``init_cfg`` loads a checkpoint."""
        super().init_weights()
        if is_checkpoint_init(self.init_cfg):
            return
        for parameter in (self.pos_embed, self.cls_token):
            if parameter is not None:
                trunc_normal_(parameter, std=0.02)
        for (
            module
        ) in self.layers.modules():  # the host's blocks have an initialisation of their own
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def train(self, mode: bool = True) -> 'IrregularPatchViT':
        """Set the mode; what is frozen stays in eval mode."""
        super().train(mode)
        self._freeze_stages()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages >= 0:
            for part in (self.patch_embed, *self.layers[: self.frozen_stages]):
                part.eval().requires_grad_(False)
            for parameter in (self.pos_embed, self.cls_token):
                if parameter is not None:
                    parameter.requires_grad_(False)

    # Only the attributes `with_cp` and `training` are asked for.
    maybe_checkpoint = PlainViT.maybe_checkpoint

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Extract features.

        Args:
            x (Tensor): Images (B, in_channels, H, W) of any size.

        Returns:
            tuple[Tensor]: For each of ``out_indices``, in order: (B, C) for ``out_type='fused'``, (B, N, C) for
            ``'raw'``, and for ``'featmap'`` (B, C, H/32, W/32) or the stem's maps; sizes are rounded up.
        """
        x, grids, maps = self.patch_embed(x)
        outs = [maps[i] for i in self.out_indices if i < self.STEM_MAPS]
        if self.pos_embed is not None:
            x = x + resize_grids(self.pos_embed, self.grids, grids)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1)
        for i in range(self.STEM_MAPS, self.out_indices[-1] + 1):
            layer = self.layers[i - self.STEM_MAPS]
            x = self.maybe_checkpoint(layer, x)
            if i in self.out_indices:
                outs.append(self.format_output(x, grids, is_last=layer is self.layers[-1]))
        return tuple(outs)

    def format_output(self, x: Tensor, grids: Sequence[Grid], is_last: bool) -> Tensor:
        """What is returned of a block's tokens (B, N, C)."""
        if self.out_type == 'raw':
            return x
        if self.out_type == 'featmap':
            x = self.norm(x) if is_last else x
            rows, columns = grids[0]
            return x[:, : rows * columns].mT.unflatten(2, (rows, columns))
        x = self.norm(x)
        if self.fusion is not None:
            return self.fusion(x, resize_grids(self.fusion.place, self.grids, grids))
        return x.mean(1) if self.cls_token is None else x[:, 0]

    def get_layer_depth(self, param_name: str, prefix: str = '') -> Tuple[int, int]:
        """The depth of a parameter, for learning rates that decay with it.

        Args:
            param_name (str): Name of the parameter.
            prefix (str): What stands before the names of the backbone's parameters. Defaults to ''.

        Returns:
            tuple[int, int]: 0 for the patch embedding and the positions, then the number of the block, and one more for
            what follows them. And the number of depths.
        """
        last = len(self.layers) + 1
        part, index, *_ = (*param_name.removeprefix(prefix).split('.'), '')
        if not param_name.startswith(prefix):
            return last, last + 1
        if part in ('patch_embed', 'pos_embed', 'cls_token'):
            return 0, last + 1
        return (int(index) + 1 if part == 'layers' else last), last + 1
