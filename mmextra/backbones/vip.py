"""Vision Permutator: A Permutable MLP-Like Architecture. arXiv 2106.12368, TPAMI 2022.

No attention and no convolution beyond the patch embedding: tokens stay on their grid, and linear
layers mix them along the height, the width and the channels, with a learned weight for each.

Registered here: ``VisionPermutator``. Public modules: ``WeightedPermuteMLP``, ``PermutatorBlock``.
"""

from collections import OrderedDict
from typing import List, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmextra.engine.arguments import resolve_indices
from mmextra.engine.checkpoint import StateDict, register_layout
from mmextra.registry import MODELS

SIZE_MODES = ('strict', 'resize')


@register_layout('vip')
def official_layout(state: StateDict) -> StateDict:
    """Map the authors' keys: the classifier goes to the head, all else to the backbone."""
    return {
        f'head.fc.{key[5:]}' if key.startswith('head.') else f'backbone.{key}': value
        for key, value in state.items()
    }


def mlp(dim: int, hidden: int, out_dim: int, drop: float = 0.0) -> nn.Sequential:
    """Linear, GELU, Linear, with dropout after both; under the authors' names."""
    layers = dict(
        fc1=nn.Linear(dim, hidden),
        act=nn.GELU(),
        drop1=nn.Dropout(drop),
        fc2=nn.Linear(hidden, out_dim),
        drop2=nn.Dropout(drop),
    )
    return nn.Sequential(OrderedDict(layers))


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a channels-last map (B, H, W, C), bilinearly."""
    x = F.interpolate(x.permute(0, 3, 1, 2), tuple(size), mode='bilinear', align_corners=False)
    return x.permute(0, 2, 3, 1)


class WeightedPermuteMLP(nn.Module):
    """Weighted Permute-MLP (sections 3.2 and 3.3).

    The channels are split into g segments of S = C/g. The height branch joins, for each segment
    and column, the S channels of all rows to one vector, which a linear layer mixes; the width
    branch does so with the columns of each row; the channel branch mixes the channels of a token.
    A split attention weighs the three.

    Args:
        dim (int): Channels C.
        segment_dim (int): Number of segments g, which is the side of the grid as well.
            Defaults to 8.
        qkv_bias (bool): Whether the linear layers of the branches have a bias. Defaults to False.
        proj_drop (float): Dropout rate of the output. Defaults to 0.
        size_mode (str): What to do with a grid that is not g x g: ``'strict'`` refuses it,
            ``'resize'`` runs the height and width branch on a bilinearly resized grid and resizes
            what they give back. Defaults to ``'strict'``.

    Raises:
        ValueError: If C is not a multiple of g or ``size_mode`` unknown; in the forward, if the
            grid is not g x g and ``size_mode='strict'``.
    """

    def __init__(
        self,
        dim: int,
        segment_dim: int = 8,
        qkv_bias: bool = False,
        proj_drop: float = 0.0,
        size_mode: str = 'strict',
    ) -> None:
        super().__init__()
        if dim % segment_dim:
            raise ValueError(f'dim={dim} is no multiple of segment_dim={segment_dim}')
        if size_mode not in SIZE_MODES:
            raise ValueError(f'size_mode must be one of {SIZE_MODES}, got {size_mode!r}')
        self.segment_dim = segment_dim
        self.size_mode = size_mode
        self.mlp_c = nn.Linear(dim, dim, bias=qkv_bias)
        self.mlp_h = nn.Linear(dim, dim, bias=qkv_bias)
        self.mlp_w = nn.Linear(dim, dim, bias=qkv_bias)
        self.reweight = mlp(dim, dim // 4, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of ``x``, (B, H, W, C)."""
        h, w = self.grid_branches(x)
        c = self.mlp_c(x)
        # The mean of the sum, as the sum of means: the branches are added up once only.
        mean = h.mean((1, 2)) + w.mean((1, 2)) + c.mean((1, 2))  # (B, C)
        weights = self.reweight(mean).unflatten(1, (-1, 3)).softmax(2)
        of_h, of_w, of_c = weights.permute(2, 0, 1).contiguous()[:, :, None, None]
        return self.proj_drop(self.proj((c * of_c).addcmul(h, of_h).addcmul(w, of_w)))

    def grid_branches(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Outputs of the height and the width branch, (B, H, W, C) each."""
        size, side = x.shape[1:3], self.segment_dim
        fits = tuple(size) == (side, side)
        if not fits:
            if self.size_mode == 'strict':
                raise ValueError(
                    f'a grid of {tuple(size)} tokens meets layers made for {side} x {side}: feed '
                    "images of the size that the model was made for, or set size_mode='resize'"
                )
            x = resize(x, (side, side))
        x = x.unflatten(3, (side, -1))  # (B, H, W, g, S)
        h = self.mlp_h(x.permute(0, 3, 2, 1, 4).flatten(3))  # (B, g, W, H * S)
        h = h.unflatten(3, (side, -1)).permute(0, 3, 2, 1, 4).flatten(3)
        w = self.mlp_w(x.permute(0, 1, 3, 2, 4).flatten(3))  # (B, H, g, W * S)
        w = w.unflatten(3, (side, -1)).permute(0, 1, 3, 2, 4).flatten(3)
        return (h, w) if fits else (resize(h, size), resize(w, size))


class PermutatorBlock(nn.Module):
    r"""Pre-norm block of Permute-MLP and MLP, :math:`x \leftarrow x + f(LN(x)) / \lambda` for both.

    Args:
        dim (int): Channels C.
        segment_dim (int): Number of segments, the side of the grid.
        mlp_ratio (float): Width of the MLP over C. Defaults to 3.
        qkv_bias (bool): See :class:`WeightedPermuteMLP`. Defaults to False.
        drop (float): Dropout rate of the MLP. Defaults to 0.
        drop_path (float): Stochastic depth rate. Defaults to 0.
        skip_lam (float): :math:`\lambda`. Defaults to 1.
        size_mode (str): See :class:`WeightedPermuteMLP`. Defaults to ``'strict'``.
    """

    def __init__(
        self,
        dim: int,
        segment_dim: int,
        mlp_ratio: float = 3.0,
        qkv_bias: bool = False,
        drop: float = 0.0,
        drop_path: float = 0.0,
        skip_lam: float = 1.0,
        size_mode: str = 'strict',
    ) -> None:
        super().__init__()
        self.skip_lam = skip_lam
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WeightedPermuteMLP(dim, segment_dim, qkv_bias, size_mode=size_mode)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = mlp(dim, int(dim * mlp_ratio), dim, drop)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Transform the map ``x``, (B, H, W, C)."""
        gain = 1 / self.skip_lam
        x = torch.add(x, self.drop_path(self.attn(self.norm1(x))), alpha=gain)
        return torch.add(x, self.drop_path(self.mlp(self.norm2(x))), alpha=gain)


class PatchProjection(nn.Module):
    """Convolution whose stride is its kernel, of which ``proj`` is the authors' name.

    Args:
        in_channels (int): Channels of the input.
        dim (int): Channels of the output.
        size (int): Kernel and stride.
        pad (bool): Whether sides are rounded up to whole strides, by a border of zeros, instead of
            down. Defaults to False.
    """

    def __init__(self, in_channels: int, dim: int, size: int, pad: bool = False) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, size, size)
        self.size, self.pad = size, pad

    def forward(self, x: Tensor) -> Tensor:
        """Project a channels-last map (B, H, W, C) to (B, H/size, W/size, C')."""
        if self.pad:
            x = F.pad(x, (0, 0, 0, -x.shape[2] % self.size, 0, -x.shape[1] % self.size))
        x = self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x.contiguous()  # or norms and sums of all blocks would walk over memory in strides


@MODELS.register_module()
class VisionPermutator(BaseBackbone):
    """Vision Permutator (section 3).

    For classification, follow it with the host's ``GlobalAveragePooling`` and ``LinearClsHead``.

    Args:
        arch (str | dict): ``'s14'``, ``'s7'``, ``'m7'``, ``'l7'``, or a dict with ``patch_size``
            and, for each stage, ``layers`` (number of blocks), ``embed_dims``, ``transitions``
            (whether the resolution is halved after it), ``segment_dims`` (side of its grid) and,
            optionally, ``mlp_ratios`` (default 3 each). Defaults to ``'s7'``.
        img_size (int): Side of the images; checked against the grids of ``arch`` unless
            ``size_mode='resize'``. Defaults to 224.
        in_channels (int): Channels of the images. Defaults to 3.
        skip_lam (float): Divisor of the residual branches. Defaults to 1.
        qkv_bias (bool): Whether the three branches have a bias. Defaults to False.
        drop_rate (float): Dropout rate of the MLPs. Defaults to 0.
        drop_path_rate (float): Stochastic depth rate of the last block; it grows linearly from 0.
            Defaults to 0.
        size_mode (str): ``'strict'`` takes images of one size only, ``'resize'`` all, see
            :class:`WeightedPermuteMLP`; they are padded at the right and the bottom to whole
            tokens. Defaults to ``'strict'``.
        out_indices (int | Sequence[int]): Stages to give the output of. The last is normalised.
            Defaults to -1.
        out_type (str): ``'featmap'``, (B, C, h, w), or ``'avg_featmap'``, (B, C).
            Defaults to ``'featmap'``.
        frozen_stages (int): Freeze the patch embedding and so many stages; -1 freezes nothing.
            Defaults to -1.
        with_cp (bool): Recompute the blocks in the backward pass to save memory.
            Defaults to False.
        init_cfg (dict | list[dict], optional): Defaults to truncated normal weights, std 0.02.

    Raises:
        ValueError: If an argument is out of its range.
    """

    arch_zoo = {
        's14': dict(
            patch_size=14,
            layers=(4, 3, 8, 3),
            embed_dims=(384, 384, 384, 384),
            transitions=(False, False, False, False),
            segment_dims=(16, 16, 16, 16),
        ),
        's7': dict(
            patch_size=7,
            layers=(4, 3, 8, 3),
            embed_dims=(192, 384, 384, 384),
            transitions=(True, False, False, False),
            segment_dims=(32, 16, 16, 16),
        ),
        'm7': dict(
            patch_size=7,
            layers=(4, 3, 14, 3),
            embed_dims=(256, 256, 512, 512),
            transitions=(False, True, False, False),
            segment_dims=(32, 32, 16, 16),
        ),
        'l7': dict(
            patch_size=7,
            layers=(8, 8, 16, 4),
            embed_dims=(256, 512, 512, 512),
            transitions=(True, False, False, False),
            segment_dims=(32, 16, 16, 16),
        ),
    }
    OUT_TYPES = ('featmap', 'avg_featmap')
    official_layout = 'vip'

    def __init__(
        self,
        arch: Union[str, dict] = 's7',
        img_size: int = 224,
        in_channels: int = 3,
        skip_lam: float = 1.0,
        qkv_bias: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        size_mode: str = 'strict',
        out_indices: Union[int, Sequence[int]] = -1,
        out_type: str = 'featmap',
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: Union[dict, List[dict], None] = [
            dict(type='TruncNormal', layer='Linear', std=0.02),
            dict(type='Constant', layer='LayerNorm', val=1.0),
        ],
    ) -> None:
        super().__init__(init_cfg)
        settings = self._settings(arch)
        dims, segments = settings['embed_dims'], settings['segment_dims']
        self.layers = settings['layers']
        self.num_stages = len(self.layers)
        self.embed_dims = dims[-1]
        if size_mode == 'strict':
            self._check_grids(img_size, settings)
        if out_type not in self.OUT_TYPES:
            raise ValueError(f'out_type must be one of {self.OUT_TYPES}, got {out_type!r}')
        if not -1 <= frozen_stages <= self.num_stages:
            raise ValueError(
                f'frozen_stages must lie in [-1, {self.num_stages}], got {frozen_stages}'
            )
        self.out_type = out_type
        self.out_indices = resolve_indices(out_indices, self.num_stages, 'stages')
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp

        pad = size_mode == 'resize'
        self.patch_embed = PatchProjection(in_channels, dims[0], settings['patch_size'], pad)
        self.network = nn.ModuleList()
        self.stage_positions = []  # of the stages in `network`, which holds the transitions too
        total, first = sum(self.layers), 0
        for i, depth in enumerate(self.layers):
            self.stage_positions.append(len(self.network))
            blocks = (
                PermutatorBlock(
                    dims[i],
                    segments[i],
                    settings['mlp_ratios'][i],
                    qkv_bias,
                    drop_rate,
                    drop_path_rate * j / max(total - 1, 1),
                    skip_lam,
                    size_mode,
                )
                for j in range(first, first + depth)
            )
            self.network.append(nn.Sequential(*blocks))
            first += depth
            halve = settings['transitions'][i]
            if i + 1 < self.num_stages and (halve or dims[i] != dims[i + 1]):
                self.network.append(PatchProjection(dims[i], dims[i + 1], 2 if halve else 1, pad))
        self.norm = nn.LayerNorm(self.embed_dims)
        self._freeze_stages()

    @classmethod
    def _settings(cls, arch: Union[str, dict]) -> dict:
        if isinstance(arch, str):
            if arch not in cls.arch_zoo:
                raise ValueError(f'arch must be one of {list(cls.arch_zoo)}, got {arch!r}')
            arch = cls.arch_zoo[arch]
        required = {'patch_size', 'layers', 'embed_dims', 'transitions', 'segment_dims'}
        missing, unknown = required - set(arch), set(arch) - required - {'mlp_ratios'}
        if missing or unknown:
            raise ValueError(f'arch lacks {sorted(missing)} and has unknown {sorted(unknown)}')
        settings = {'mlp_ratios': (3.0,) * len(arch['layers']), **arch}
        lengths = {k: len(v) for k, v in settings.items() if isinstance(v, (list, tuple))}
        if len(set(lengths.values())) != 1:
            raise ValueError(f'arch must have one entry for each stage, got lengths {lengths}')
        return settings

    @staticmethod
    def _check_grids(img_size: int, settings: dict) -> None:
        """Raise if images of this size do not give the grids that the layers are made for."""
        side = img_size // settings['patch_size']
        sides = []
        for halve in settings['transitions']:
            sides.append(side)
            side //= 2 if halve else 1
        if tuple(sides) != tuple(settings['segment_dims']):
            raise ValueError(
                f'img_size={img_size} gives grids of {sides} tokens a side, but segment_dims are '
                f"{settings['segment_dims']}; change one, or set size_mode='resize'"
            )

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        last = self.stage_positions[self.frozen_stages - 1] + 1 if self.frozen_stages else 0
        for module in (self.patch_embed, *self.network[:last]):
            module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> 'VisionPermutator':
        """Set the mode, keeping frozen stages in eval mode."""
        super().train(mode)
        self._freeze_stages()
        return self

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Extract features.

        Args:
            x (Tensor): Images, (B, 3, H, W).

        Returns:
            tuple[Tensor]: One entry for each of ``out_indices``, see ``out_type``.
        """
        x = self.patch_embed(x.permute(0, 2, 3, 1))  # (B, h, w, C)
        outs = []
        for position, module in enumerate(self.network):
            if position not in self.stage_positions:
                x = module(x)
                continue
            for block in module:
                if self.with_cp and x.requires_grad:
                    x = checkpoint(block, x, use_reentrant=False)
                else:
                    x = block(x)
            stage = self.stage_positions.index(position)
            if stage in self.out_indices:
                out = self.norm(x) if stage == self.num_stages - 1 else x
                pooled = self.out_type == 'avg_featmap'
                outs.append(out.mean((1, 2)) if pooled else out.permute(0, 3, 1, 2))
        return tuple(outs)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> Tuple[int, int]:
        """Depth of a parameter for layer-wise learning rates.

        A transition counts with the block that follows it.

        Args:
            param_name (str): Name of the parameter.
            prefix (str): Prefix of the backbone's parameters. Defaults to ''.

        Returns:
            tuple[int, int]: Depth, 0 for the patch embedding, and the number of depths.
        """
        num_depths = sum(self.layers) + 2
        if not param_name.startswith(prefix):
            return num_depths - 1, num_depths
        part, *rest = param_name[len(prefix) :].split('.')
        if part != 'network':
            return (0 if part == 'patch_embed' else num_depths - 1), num_depths
        position = int(rest[0])
        before = sum(n for p, n in zip(self.stage_positions, self.layers) if p < position)
        inner = int(rest[1]) if position in self.stage_positions else 0
        return before + inner + 1, num_depths
