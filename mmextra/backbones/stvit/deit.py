"""STViT on DeiT."""

from typing import Tuple, Union

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.model.weight_init import trunc_normal_
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmpretrain.models.utils import LayerNorm2d
from torch import Tensor, nn

from mmextra.backbones.plain_vit import PlainViT
from mmextra.registry import MODELS

from .blocks import Size


@MODELS.register_module()
class SemanticPooling(BaseModule):
    """Pool a map of image tokens to the first cluster centres.

    The map is cut into n x n regions, which overlap where n does not divide its size.

    - ``'learned'``: A = the mean over each region of mask * x, P = A + offset(A). The mask has one channel, the offset
      C; both come from a depth-wise 3x3 convolution, LN, GELU and a 1x1 convolution.
    - ``'avg'``, ``'max'``: the mean or maximum over each region.

    Args:
        embed_dims (int): Channels C.
        num_semantic (int): n.
        mode (str): One of the above. Defaults to ``'learned'``.

    Raises:
        ValueError: For another ``mode``.
    """

    def __init__(self, embed_dims: int, num_semantic: int, mode: str = 'learned') -> None:
        super().__init__()
        if mode not in ('learned', 'avg', 'max'):
            raise ValueError(
                f"mode (pool of STViT) must be 'learned', 'avg' or 'max', got {mode!r}"
            )
        self.num_semantic = num_semantic
        self.mode = mode
        if mode == 'learned':
            self.mask, self.offset = (
                nn.Sequential(
                    nn.Conv2d(embed_dims, embed_dims, 3, padding=1, groups=embed_dims),
                    LayerNorm2d(embed_dims),
                    nn.GELU(),
                    nn.Conv2d(embed_dims, channels, 1),
                )
                for channels in (1, embed_dims)
            )

    def forward(self, x: Tensor, hw_shape: Size) -> Tensor:
        """Pool tokens (B, H*W, C) to (B, n*n, C), row by row."""
        x = x.transpose(1, 2).unflatten(2, hw_shape)
        if self.mode == 'learned':
            x = F.adaptive_avg_pool2d(self.mask(x) * x, self.num_semantic)
            x = x + self.offset(x)
        else:
            pool = F.adaptive_max_pool2d if self.mode == 'max' else F.adaptive_avg_pool2d
            x = pool(x, self.num_semantic)
        return x.flatten(2).transpose(1, 2)


class SemanticEncoderLayer(TransformerEncoderLayer):
    """The host's encoder layer, with the parameters of one, whose keys are other tokens than its queries."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Update ``x`` (B, N, C) from ``context`` (B, M, C)."""
        attn, (heads, dims) = self.attn, (self.attn.num_heads, self.embed_dims)
        weight, bias = attn.qkv.weight, attn.qkv.bias
        q_bias, kv_bias = (None, None) if bias is None else bias.split((dims, 2 * dims))
        q = F.linear(self.ln1(x), weight[:dims], q_bias).unflatten(-1, (heads, -1)).transpose(1, 2)
        kv = F.linear(self.ln1(context), weight[dims:], kv_bias)
        k, v = kv.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = attn.attn_drop if self.training else 0.0
        branch = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        branch = attn.proj_drop(attn.proj(branch.transpose(1, 2).flatten(2)))
        x = x + attn.out_drop(attn.gamma1(branch))
        return self.ffn(self.ln2(x), identity=x)


@MODELS.register_module()
class STViT(PlainViT):
    r"""DeiT whose later layers work on a few semantic tokens.

    After ``base_layers`` on the image tokens X, the semantic tokens are pooled, P, and ``stgm_layers`` of the semantic
    token generation module find the cluster centres; X is not updated any more:

    .. math::
        S_1 = \mathrm{Layer}(q = P, kv = X), \qquad S_2 = \mathrm{Layer}(q = S_1 + G, kv = [S_1; X])

    with learned global cluster centres G, and further ones with q = S, kv = [S; X]. The remaining layers are ordinary
    ones on the semantic tokens. There is no class token.

    Args:
        arch (str | dict): ``'deit-tiny'``, ``'deit-small'``, ``'deit-base'``, any other name of the host's
            ``VisionTransformer``, or a dict as there. Defaults to ``'deit-small'``.
        base_layers (int): Layers on the image tokens. Defaults to 4.
        stgm_layers (int): Layers that find the cluster centres; with 0 the pooled tokens are all there is. Defaults to
            2.
        num_semantic (int): Semantic tokens on a side of their grid, n. Defaults to 4.
        pool (str): ``'learned'``, ``'avg'`` or ``'max'``, see :class:`SemanticPooling`. Defaults to ``'learned'``.
        out_type (str): ``'avg_featmap'`` (B, C), the mean of the tokens; ``'featmap'`` (B, C, H, W), where the grid is
            n x n after the base layers; ``'raw'`` (B, N, C). Defaults to ``'avg_featmap'``.
        drop_rate (float): Dropout of the tokens, projections and FFNs. Defaults to 0.
        qkv_bias (bool): Whether queries, keys and values have a bias. Defaults to True.
        norm_cfg (dict): All norms. Defaults to ``dict(type='LN', eps=1e-6)``.
        **kwargs: ``img_size``, ``patch_size``, ``in_channels``, ``out_indices``, ``drop_path_rate``, ``frozen_stages``,
            ``with_cp`` and ``init_cfg`` of :class:`~mmextra.backbones.plain_vit.PlainViT`.

    Raises:
        ValueError: If the numbers of layers do not fit ``arch``, or ``pool`` or ``out_type`` is none of the above.
    """

    def __init__(
        self,
        arch: Union[str, dict] = 'deit-small',
        base_layers: int = 4,
        stgm_layers: int = 2,
        num_semantic: int = 4,
        pool: str = 'learned',
        out_type: str = 'avg_featmap',
        drop_rate: float = 0.0,
        qkv_bias: bool = True,
        norm_cfg: dict = dict(type='LN', eps=1e-6),
        **kwargs,
    ) -> None:
        settings = self.settings_of(arch)
        self.semantic_layers = range(base_layers, base_layers + stgm_layers)
        if (
            min(base_layers, stgm_layers) < 0
            or base_layers + max(stgm_layers, 1) > settings['num_layers']
        ):
            raise ValueError(
                f'base_layers={base_layers} and stgm_layers={stgm_layers} do not fit {settings["num_layers"]} layers: '
                'at least one of these must work on semantic tokens'
            )
        if out_type not in ('avg_featmap', 'featmap', 'raw'):
            raise ValueError(
                f"out_type must be 'avg_featmap', 'featmap' or 'raw', got {out_type!r}"
            )

        def make_layer(index: int, drop_path_rate: float) -> TransformerEncoderLayer:
            semantic = index in self.semantic_layers
            return (SemanticEncoderLayer if semantic else TransformerEncoderLayer)(
                settings['embed_dims'],
                settings['num_heads'],
                settings['feedforward_channels'],
                drop_rate=drop_rate,
                drop_path_rate=drop_path_rate,
                qkv_bias=qkv_bias,
                norm_cfg=norm_cfg,
            )

        super().__init__(
            arch,
            drop_rate=drop_rate,
            norm_cfg=norm_cfg,
            out_type='featmap',
            with_cls_token=False,
            make_layer=make_layer,
            **kwargs,
        )
        self.out_type = out_type
        self.ln2 = nn.Identity()  # the host would norm the mean of the tokens once more
        self.pool = SemanticPooling(self.embed_dims, num_semantic, pool)
        self.global_tokens = None
        if stgm_layers > 1:
            self.global_tokens = nn.Parameter(torch.empty(1, num_semantic**2, self.embed_dims))
            trunc_normal_(self.global_tokens, std=0.02)
        if self.frozen_stages >= 0:
            self._freeze_stages()

    def forward(self, x: Tensor) -> tuple:
        """Extract features.

        Args:
            x (Tensor): Images (B, in_channels, H, W) of any size.

        Returns:
            tuple[Tensor]: For each of ``out_indices``, in the order of the layers, what ``out_type`` says.
        """
        x, grid = self.patch_embed(x)
        # The patches are a transposed view of the convolution's map: norms and sums would walk over it in strides.
        x = self.add_positions(x.contiguous(), grid)
        image, outs = None, []
        for i, layer in enumerate(self.layers):
            if i == self.semantic_layers.start:
                image, x, grid = x, self.pool(x, grid), (self.pool.num_semantic,) * 2
            if i in self.semantic_layers:
                context = image
                if i > self.semantic_layers.start:
                    context = torch.cat((x, image), dim=1)
                if i == self.semantic_layers.start + 1:
                    x = x + self.global_tokens
                x = self.maybe_checkpoint(layer, x, context)
            else:
                x = self.maybe_checkpoint(layer, x)
            if i == self.num_layers - 1 and self.final_norm:
                x = self.ln1(x)
            if i in self.out_indices:
                outs.append(self._format_output(x, grid))
        return tuple(outs)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> Tuple[int, int]:
        """Get the layer-wise depth of a parameter.

        Args:
            param_name (str): The name of the parameter.
            prefix (str): What the names of the backbone's parameters begin with. Defaults to ''.

        Returns:
            tuple[int, int]: The depth of the parameter and the number of depths.
        """
        first = f'{prefix}layers.{self.semantic_layers.start}'
        second = f'{prefix}layers.{self.semantic_layers.start + 1}'
        if param_name.startswith(f'{prefix}pool.'):
            param_name = first
        elif param_name == f'{prefix}global_tokens':
            param_name = second
        return super().get_layer_depth(param_name, prefix)

    def _freeze_stages(self) -> None:
        super()._freeze_stages()
        if not hasattr(self, 'global_tokens'):  # the base class is not done yet
            return
        if self.frozen_stages > self.semantic_layers.start:
            self.pool.requires_grad_(False)
        if self.frozen_stages > self.semantic_layers.start + 1 and self.global_tokens is not None:
            self.global_tokens.requires_grad_(False)
