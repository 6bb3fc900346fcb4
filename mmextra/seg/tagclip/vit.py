"""CLIP's image tower with deep visual prompts, as in TagCLIP (arXiv 2304.07547, section 3.2)."""

import math
from typing import List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmextra.engine.checkpoint import is_checkpoint_init
from mmextra.registry import MODELS
from mmextra.seg.tagclip.checkpoint import checkpoint_of, load_clip


class ResidualAttentionBlock(nn.Module):
    """CLIP's pre-norm transformer block, under CLIP's names.

    Args:
        width (int): Channels.
        heads (int): Attention heads.
    """

    class MLP(nn.Module):
        """Two layers with CLIP's fast GELU, ``x * sigmoid(1.702 x)``, between them."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.c_fc = nn.Linear(width, 4 * width)
            self.c_proj = nn.Linear(4 * width, width)

        def forward(self, x: Tensor) -> Tensor:
            """Transform tokens (B, N, C)."""
            x = self.c_fc(x)
            return self.c_proj(x * torch.sigmoid(1.702 * x))

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = self.MLP(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens (B, N, C)."""
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


@MODELS.register_module()
class VPTCLIPVisionTransformer(BaseModule):
    """CLIP's image encoder with visual prompts. Everything but the prompts is frozen.

    As in the released models, the class token gets the class embedding twice, once with its
    position; and the stochastic depth that the authors configure (``drop_path_rate``) is left out
    because their blocks never apply it.

    Args:
        input_resolution (int): Side in pixels of the square images that the stored positions are
            for. Others, square or not, work by interpolation; what is left beyond whole patches is not
            seen, as in CLIP (``TagCLIP`` pads its images; for a stock head, let the data preprocessor
            do so). Defaults to 512.
        patch_size (int): Side of a patch. Defaults to 16.
        width (int): Channels of the tokens. Defaults to 768.
        layers (int): Number of blocks. Defaults to 12.
        heads (int): Attention heads. Defaults to 12.
        output_dim (int): Channels D of CLIP's joint space. Defaults to 512.
        num_tokens (int): Prompts P. Defaults to 10.
        prompt_dim (int, optional): Channels of the prompts, those of the tokens. Defaults to None,
            ``width``.
        total_d_layer (int): Blocks after the first that get prompts of their own, in place of those
            that the block before them returned; later blocks get none. 0 gives the first block's
            prompts to all blocks, as in shallow prompt tuning. Defaults to 11.
        out_indices (Sequence[int], optional): With several entries, the maps (B, width, h, w) that
            these blocks return take the place of the projected one. One entry stands for the
            projected map, whichever it is. Defaults to None.
        get_embeddings (bool): Whether to give the image embedding beside the maps. Set False for a
            stock head; what then follows the last of several maps is neither run nor trained.
            Defaults to True.
        prompt_dropout (float): Dropout rate of the projected prompts. Defaults to 0.1.
        init_cfg (dict, optional): ``dict(type='mmextra.OfficialCheckpoint', checkpoint=PATH)`` or
            ``Pretrained`` with OpenAI's weights, a state dict or a TorchScript archive. The prompts
            are drawn, and the stored positions resized. Defaults to None.

    Raises:
        ValueError: If ``prompt_dim`` differs from ``width``, a block index is out of range, or the
            image is smaller than a patch.
    """

    official_layout = 'tagclip'

    def __init__(
        self,
        input_resolution: int = 512,
        patch_size: int = 16,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        output_dim: int = 512,
        num_tokens: int = 10,
        prompt_dim: Optional[int] = None,
        total_d_layer: int = 11,
        out_indices: Optional[Sequence[int]] = None,
        get_embeddings: bool = True,
        prompt_dropout: float = 0.1,
        init_cfg: Optional[dict] = None,
    ) -> None:
        super().__init__(init_cfg)
        self.out_indices = tuple(out_indices or (layers - 1,))
        self._check(width, heads, layers, prompt_dim, total_d_layer, self.out_indices)
        self.patch_size = patch_size
        self.grid = input_resolution // patch_size
        self.num_tokens = num_tokens
        self.total_d_layer = total_d_layer
        self.get_embeddings = get_embeddings

        self.conv1 = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(self.grid**2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(
            ResidualAttentionBlock(width, heads) for _ in range(layers)
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, output_dim))

        self.prompt_embeddings = nn.Parameter(torch.empty(1, num_tokens, width))
        if total_d_layer:
            self.deep_prompt_embeddings = nn.Parameter(
                torch.empty(total_d_layer, num_tokens, width)
            )
        self.prompt_proj = nn.Linear(width, width)
        self.prompt_norm = nn.LayerNorm(width, eps=1e-6)
        self.prompt_dropout = nn.Dropout(prompt_dropout)
        self._init_prompts()
        for name, parameter in self.named_parameters():
            parameter.requires_grad = 'prompt' in name
        if not self.projects:
            self.prompt_norm.requires_grad_(False)  # unread: no process has to look for it

    @property
    def projects(self) -> bool:
        """Whether anything is read that is projected to CLIP's joint space."""
        return self.get_embeddings or len(self.out_indices) == 1

    @staticmethod
    def _check(width, heads, layers, prompt_dim, total_d_layer, out_indices) -> None:
        if prompt_dim not in (None, width):
            raise ValueError(f'prompt_dim must be width={width}, got {prompt_dim}: leave it out')
        if width % heads:
            raise ValueError(f'width={width} is no multiple of heads={heads}')
        if not 0 <= total_d_layer < layers:
            raise ValueError(
                f'total_d_layer must be 0 to {layers - 1}, the blocks after the first of layers={layers}, '
                f'got {total_d_layer}'
            )
        wrong = [i for i in out_indices if not 0 <= i < layers]
        if wrong:
            raise ValueError(f'out_indices must be 0 to {layers - 1}, got {wrong}')

    def _init_prompts(self) -> None:
        """Draw the prompts as visual prompt tuning does."""
        dim = self.prompt_embeddings.shape[-1]
        bound = math.sqrt(6 / (3 * self.patch_size**2 + dim))
        nn.init.uniform_(self.prompt_embeddings, -bound, bound)
        if self.total_d_layer:
            nn.init.uniform_(self.deep_prompt_embeddings, -bound, bound)
        nn.init.kaiming_normal_(self.prompt_proj.weight, mode='fan_out')

    def init_weights(self) -> None:
        """Draw the prompts and load what ``init_cfg`` names; do nothing after a checkpoint."""
        if self.is_init:
            return
        self._init_prompts()
        if is_checkpoint_init(self.init_cfg):
            load_clip(self, checkpoint_of(self.init_cfg), 'backbone')
            self._is_init = True
        else:
            super().init_weights()

    def forward(self, x: Tensor) -> Union[Tuple[Tuple[Tensor, ...], Tensor], Tuple[Tensor, ...]]:
        """Encode images (B, 3, H, W).

        Returns:
            tuple: The maps, and the image embedding (B, D) of length 1 unless ``get_embeddings`` is
                False. The map of one output is (B, D, h, w), each position of length 1.
        """
        x, grid = self.embed(x)  # (B, 1 + h * w, C)
        maps: List[Tensor] = []
        for i, block in enumerate(self.transformer.resblocks):
            x = block(self.with_prompts(x, i, grid[0] * grid[1]))
            if len(self.out_indices) > 1 and i in self.out_indices:
                maps.append(self.to_map(x, grid))
            if not self.projects and i == max(self.out_indices):
                return tuple(maps)
        x = self.ln_post(self.prompt_norm(x)) @ self.proj
        if not maps:
            maps = [F.normalize(self.to_map(x, grid), dim=1)]
        return (tuple(maps), F.normalize(x[:, 0], dim=-1)) if self.get_embeddings else tuple(maps)

    def embed(self, x: Tensor) -> Tuple[Tensor, Tuple[int, int]]:
        """Class token and patches with their positions (B, 1 + h * w, C), and the grid (h, w)."""
        if min(x.shape[-2:]) < self.patch_size:
            raise ValueError(
                f'images of {tuple(x.shape[-2:])} pixels are smaller than a patch of '
                f'{self.patch_size}: pad them'
            )
        x = self.conv1(x)
        grid = tuple(x.shape[-2:])
        patches = (x + self.positions(grid)).flatten(2).mT
        position = self.positional_embedding[0] + self.class_embedding
        token = (self.class_embedding + position).expand(len(x), 1, -1)  # twice, as published
        return self.ln_pre(torch.cat((token.to(patches.dtype), patches), 1)), grid

    def positions(self, grid: Tuple[int, int]) -> Tensor:
        """The positions of the patches, (1, C, h, w)."""
        stored = self.positional_embedding[1:].T.unflatten(1, (self.grid, self.grid))[None]
        if grid == (self.grid, self.grid):
            return stored
        return F.interpolate(stored, size=grid, mode='bilinear', align_corners=False)

    def with_prompts(self, x: Tensor, i: int, patches: int) -> Tensor:
        """The tokens that block ``i`` gets, from those that the block before it returned."""
        if i > self.total_d_layer > 0:
            return torch.cat((x[:, :1], x[:, -patches:]), 1)
        if i and not self.total_d_layer:
            return x
        prompts = self.deep_prompt_embeddings[i - 1 : i] if i else self.prompt_embeddings
        prompts = self.prompt_dropout(self.prompt_proj(prompts).expand(len(x), -1, -1))
        return torch.cat((x[:, :1], prompts.to(x.dtype), x[:, -patches:]), 1)

    @staticmethod
    def to_map(x: Tensor, grid: Tuple[int, int]) -> Tensor:
        """The patch tokens, the last of (B, N, C), as a map (B, C, h, w)."""
        return x[:, -grid[0] * grid[1] :].mT.unflatten(2, grid).contiguous()
