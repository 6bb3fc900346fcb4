"""The feature pyramid with dual-stream blocks."""

from typing import List, Optional, Sequence, Union

from mmdet.models.necks import FPN
from torch import nn

from mmextra.backbones.dsnet.backbone import DSBlock
from mmextra.registry import MODELS


@MODELS.register_module()
class DSFPN(FPN):
    """Feature pyramid whose levels pass a dual-stream block after the top-down sum (section 3.4).

    The paper's code of this part is not published. Our reading: at each level of the backbone a :class:`DSBlock`
    without MLP stands between the sum and the 3x3 output convolution. Everything else is mmdet's ``FPN``, the extra
    levels included.

    Args:
        in_channels (list[int]): Channels of the backbone's maps.
        out_channels (int): Channels of every output, even.
        num_outs (int): Number of outputs.
        ds_heads (int): Heads of the blocks' attentions. Defaults to 8.
        reductions (Sequence[int]): For each map of the backbone, the side of it over the side of its global stream.
            Defaults to ``(8, 4, 2, 1)``: 1/32 of the image everywhere, for strides 4, 8, 16 and 32.
        norm_cfg (dict, optional): Norm of the convolutions as in ``FPN``, and of the blocks, which have batch norms
            where it is None. Defaults to None.
        init_cfg (dict | list[dict]): Defaults to ``FPN``'s for the convolutions, and truncated normal linear layers
            with standard deviation 0.02.
        **kwargs: Further arguments of ``FPN`` (``start_level``, ``add_extra_convs``, ...).

    Raises:
        ValueError: If there is no reduction for a map, or a block is impossible.

    Example:
        >>> neck = dict(type='mmextra.DSFPN', in_channels=[64, 128, 320, 512], out_channels=256, num_outs=5)
    """

    def __init__(
        self,
        in_channels: List[int],
        out_channels: int,
        num_outs: int,
        ds_heads: int = 8,
        reductions: Sequence[int] = (8, 4, 2, 1),
        norm_cfg: Optional[dict] = None,
        init_cfg: Union[dict, list, None] = [
            dict(type='Xavier', layer='Conv2d', distribution='uniform'),
            dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
        ],
        **kwargs,
    ) -> None:
        if len(reductions) != len(in_channels):
            raise ValueError(
                f'reductions must have a number for each of the {len(in_channels)} maps of the backbone, '
                f'in_channels; got {reductions}'
            )
        if out_channels % (2 * ds_heads):
            raise ValueError(
                f'out_channels must be a multiple of 2 * ds_heads={2 * ds_heads}, got {out_channels}: half of them go '
                'to the heads'
            )
        super().__init__(
            in_channels, out_channels, num_outs, norm_cfg=norm_cfg, init_cfg=init_cfg, **kwargs
        )
        for i, reduction in enumerate(reductions[self.start_level : self.backbone_end_level]):
            block = DSBlock(
                out_channels,
                ds_heads,
                reduction,
                mlp_ratio=0,
                norm_cfg=norm_cfg or dict(type='BN'),
            )
            self.fpn_convs[i] = nn.Sequential(block, self.fpn_convs[i])
