"""H-GKD: a CNN is pre-trained on masked images to predict what a Transformer sees.

Heterogeneous Generative Knowledge Distillation with Masked Image Modeling (arXiv 2309.09571).
Registered here: the self-supervised model ``HGKD``, on the stock sparse encoders of SparK, and its
parts ``UNetTokenDecoder`` and ``TokenDistillHead``. The authors published no code; where the paper
is silent, SparK's choices are taken, and the rest is our reading.
"""

import logging
import math
from contextlib import contextmanager
from typing import Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from mmengine.dist import get_rank, is_distributed
from mmengine.logging import print_log
from mmengine.model import BaseModule, initialize
from mmengine.model.weight_init import trunc_normal_
from mmpretrain.models.necks.spark_neck import DecoderConvModule
from mmpretrain.models.selfsup import BaseSelfSupervisor, MAEViT, SparK
from mmpretrain.models.utils.norm import build_norm_layer
from mmpretrain.models.utils.sparse_modules import SparseHelper
from mmpretrain.registry import MODELS as PRETRAIN_MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmextra.distill.base import PixelFormat
from mmextra.distill.pyramid import evaluating
from mmextra.engine.checkpoint import is_checkpoint_init, read_checkpoint, state_dict_of
from mmextra.ops.precision import at_least_float32
from mmextra.registry import MODELS

TEACHER_VIEWS = ('full', 'visible')


@contextmanager
def visible_cells(active: Tensor):
    """Let sparse modules compute at the active cells, and forget the cells afterwards.

    The stock helper keeps them in a class attribute, where a later model would find them.

    Args:
        active (Tensor): Visible cells of each image, boolean (B, 1, f, f).
    """
    before = SparseHelper._cur_active
    SparseHelper._cur_active = active
    try:
        yield
    finally:
        SparseHelper._cur_active = before


def spread(cells: Tensor, factor: int) -> Tensor:
    """Repeat every cell of a map (B, 1, f, f) ``factor`` times in height and in width."""
    return cells.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def encoder_maps(backbone: nn.Module) -> Tuple[List[int], int]:
    """What a stock ``SparseResNet`` or ``SparseConvNeXt`` returns.

    Returns:
        tuple: Channels of its maps, shallow to deep, and the stride of its deepest stage.

    Raises:
        ValueError: If the backbone is of another kind, or does not return the maps of successive
            stages up to the deepest.
    """
    name = type(backbone).__name__
    if hasattr(backbone, 'res_layers'):
        stages = [getattr(backbone, layer)[-1].out_channels for layer in backbone.res_layers]
        stride = 4 * math.prod(backbone.strides)
    elif hasattr(backbone, 'downsample_layers'):
        if backbone.gap_before_output:
            raise ValueError(f'{name} pools its maps: set backbone.gap_before_output=False')
        stages, stride = list(backbone.channels), 2 * 2**backbone.num_stages
    else:
        raise ValueError(f'HGKD needs a sparse encoder, SparseResNet or SparseConvNeXt, got {name}')
    indices = list(backbone.out_indices)
    if indices != list(range(len(stages)))[-len(indices) :]:
        raise ValueError(
            f'the decoder joins successive maps up to the deepest: {name} has {len(stages)} stages, '
            f'set backbone.out_indices={tuple(range(len(stages)))}, got {tuple(indices)}'
        )
    return [stages[i] for i in indices], stride


@MODELS.register_module()
class UNetTokenDecoder(BaseModule):
    """Fill the masked cells of an encoder's maps, decode them, and predict the teacher's tokens.

    SparK's light decoder, cut at the resolution of the shallowest map, which is added there.

    Args:
        in_channels (Sequence[int]): Channels of the encoder's maps, shallow to deep.
        out_channels (int): Width D of the teacher's tokens.
        token_stride (int): Cells of the shallowest map that one token spans, in each direction.
            Defaults to 4.
        width (int): Channels at the deepest map; halved with every doubling of the resolution.
            Defaults to 512.
        sparse_norm_cfg (dict): Normalisation of the encoder's maps over visible positions.
            Defaults to ``dict(type='SparseSyncBatchNorm2d')``.
        norm_cfg (dict): Normalisation in the decoder. Defaults to ``dict(type='SyncBN')``.
        init_cfg (dict | list, optional): Defaults to SparK's.

    Raises:
        ValueError: If ``width`` cannot be halved once for each shallower map.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        token_stride: int = 4,
        width: int = 512,
        sparse_norm_cfg: dict = dict(type='SparseSyncBatchNorm2d'),
        norm_cfg: dict = dict(type='SyncBN'),
        init_cfg: Union[dict, List[dict], None] = [
            dict(type='Kaiming', layer=['Conv2d', 'ConvTranspose2d']),
            dict(type='Constant', val=1, layer=['_BatchNorm', 'LayerNorm']),
        ],
    ) -> None:
        super().__init__(init_cfg)
        levels = len(in_channels)
        if width % 2 ** (levels - 1):
            raise ValueError(
                f'width must be a multiple of {2 ** (levels - 1)}, to be halved for each of '
                f'{levels} maps, got {width}'
            )
        deepest_first = list(in_channels)[::-1]
        widths = [width // 2**i for i in range(levels)]
        self.norms = nn.ModuleList(build_norm_layer(sparse_norm_cfg, c) for c in deepest_first)
        self.mask_tokens = nn.ParameterList(
            nn.Parameter(torch.zeros(1, c, 1, 1)) for c in deepest_first
        )
        for token in self.mask_tokens:
            trunc_normal_(token, std=0.02, a=-0.02, b=0.02)
        self.projections = nn.ModuleList(
            nn.Conv2d(own, to, 3 if i else 1, padding=1 if i else 0)
            for i, (own, to) in enumerate(zip(deepest_first, widths))
        )
        if deepest_first[0] == width:
            self.projections[0] = nn.Identity()
        self.ups = nn.ModuleList(
            DecoderConvModule(wide, narrow, mid_channels=wide, norm_cfg=norm_cfg, last_act=False)
            for wide, narrow in zip(widths, widths[1:])
        )
        self.to_tokens = nn.Conv2d(widths[-1], out_channels, token_stride, stride=token_stride)

    def densify(self, maps: Sequence[Tensor], active: Tensor) -> List[Tensor]:
        """Put mask tokens where the encoder saw nothing, and project to the decoder's widths.

        Args:
            maps (Sequence[Tensor]): The encoder's maps (B, C_i, H_i, W_i), shallow to deep, zero at
                masked cells.
            active (Tensor): Visible cells, boolean (B, 1, f, f). Sparse norms take theirs from
                :func:`visible_cells`.

        Returns:
            list[Tensor]: (B, width / 2^i, H_i, W_i), deep to shallow.
        """
        dense = []
        for norm, token, project, x in zip(
            self.norms, self.mask_tokens, self.projections, maps[::-1]
        ):
            visible = spread(active, x.shape[-1] // active.shape[-1])
            x = norm(x)
            dense.append(project(torch.where(visible, x, token.to(x.dtype))))
        return dense

    def decode(self, dense: Sequence[Tensor]) -> Tensor:
        """Predicted tokens (B, D, g, g) from the output of :meth:`densify`."""
        x = dense[0]
        for up, skip in zip(self.ups, dense[1:]):
            x = up(x) + skip
        return self.to_tokens(x)

    def forward(self, maps: Sequence[Tensor], active: Tensor) -> Tensor:
        """Predicted tokens (B, D, g, g) from the encoder's maps; arguments as of :meth:`densify`."""
        return self.decode(self.densify(maps, active))


@MODELS.register_module()
class TokenDistillHead(BaseModule):
    """Smooth-L1 loss between predicted and normalised teacher tokens.

    Adds ``loss_masked``, the mean over tokens in masked cells, and ``loss_visible``.

    Args:
        masked_weight (float): Weight of tokens in masked cells. Defaults to 1.0.
        visible_weight (float): Weight of tokens in visible cells. Defaults to 1.0.
        beta (float): Where the loss turns from squared to absolute. Defaults to 1.0.
    """

    def __init__(
        self, masked_weight: float = 1.0, visible_weight: float = 1.0, beta: float = 1.0
    ) -> None:
        super().__init__()
        self.masked_weight, self.visible_weight, self.beta = masked_weight, visible_weight, beta

    @staticmethod
    def target(tokens: Tensor) -> Tensor:
        """Tokens (B, D, g, g), each with mean 0 and variance 1 over its D numbers, of half precision in float32."""
        tokens = at_least_float32(tokens).movedim(1, -1)
        return F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6).movedim(-1, 1)

    def forward(self, pred: Tensor, tokens: Tensor, active: Tensor) -> Dict[str, Tensor]:
        """Compute the losses.

        Args:
            pred (Tensor): Predicted tokens, (B, D, g, g).
            tokens (Tensor): The teacher's, (B, D, g, g).
            active (Tensor): Visible cells, boolean (B, 1, f, f).

        Returns:
            dict: ``loss_masked`` and ``loss_visible``, those that have a weight; 0 where there is no
            such token.
        """
        target = self.target(tokens)
        error = F.smooth_l1_loss(at_least_float32(pred), target, reduction='none', beta=self.beta)
        error = error.mean(1, keepdim=True)  # (B, 1, g, g)
        visible = spread(active, error.shape[-1] // active.shape[-1])
        losses = {}
        for name, where, weight in (
            ('loss_masked', ~visible, self.masked_weight),
            ('loss_visible', visible, self.visible_weight),
        ):
            if weight:
                losses[name] = weight * (error * where).sum() / where.sum().clamp(min=1)
        return losses


def load_teacher(teacher: BaseModule) -> None:
    """Load what a teacher's ``init_cfg`` names, strictly.

    The stock initialisation would pass over keys that do not fit, and ``MAEViT`` would draw some of
    its weights anew afterwards.

    Raises:
        ValueError: If the checkpoint is not of this teacher; the message lists the keys.
    """
    cfg = teacher.init_cfg
    if not is_checkpoint_init(cfg):
        print_log(
            'the teacher has no checkpoint: its weights are random, and the student learns noise from '
            "it. Give teacher=dict(..., init_cfg=dict(type='Pretrained', checkpoint=...)).",
            'current',
            level=logging.WARNING,
        )
        teacher.init_weights()
        return
    if cfg['type'] != 'Pretrained':
        initialize(teacher, cfg)
        return
    path, prefix = cfg['checkpoint'], cfg.get('prefix') or ''
    whole = state_dict_of(read_checkpoint(path))
    state = {k[len(prefix) :]: v for k, v in whole.items() if k.startswith(prefix)}
    problems = [f'missing {k}' for k in teacher.state_dict() if k not in state]
    problems += [f'left over {k}' for k in state if k not in teacher.state_dict()]
    if problems:
        more = f' (+{len(problems) - 6} more)' if len(problems) > 6 else ''
        raise ValueError(
            f'{path} is not of this {type(teacher).__name__} (prefix {prefix!r}): '
            f'{"; ".join(problems[:6])}{more}. Its keys begin with '
            f'{", ".join(sorted({k.partition(".")[0] for k in whole}))}: give the prefix of the '
            'backbone, and the arguments that the checkpoint was trained with.'
        )
    teacher.load_state_dict(state)


@MODELS.register_module()
class HGKD(BaseSelfSupervisor):
    """Pre-train a sparse CNN on masked images to predict a frozen Transformer's tokens.

    Only ``backbone`` is of use afterwards: its keys are those of the stock ``ResNet`` (of mmpretrain,
    mmdet and mmseg), or those of ``ConvNeXt`` without the norms after its stages. The teacher is not
    in the state dict.

    Args:
        backbone (dict): A stock ``SparseResNet``, or ``SparseConvNeXt`` with
            ``gap_before_output=False``, with ``out_indices`` from stride 4 to ``downsample_ratio``.
        teacher (dict): A stock ``VisionTransformer`` with ``out_type='featmap'`` (or any backbone with
            ``embed_dims`` whose last output is a map of tokens), and an ``init_cfg`` with its
            checkpoint.
        decoder (dict): Options of :class:`UNetTokenDecoder`: ``width``, norms. Defaults to
            ``dict(width=512)``.
        token_head (dict): Options of :class:`TokenDistillHead`: ``beta``. Defaults to ``dict()``.
        mask_ratio (float): Part of the cells that is masked. Defaults to 0.6.
        teacher_view (str): ``'full'``: the teacher sees the whole image. ``'visible'``: it sees what
            the student sees, and supervises only that; needs a ``MAEViT``. Defaults to ``'full'``.
        masked_weight (float): Weight of tokens in masked cells; without effect if the teacher does not
            see them. Defaults to 1.0.
        visible_weight (float): Weight of tokens in visible cells. Defaults to 1.0.
        pixel_weight (float): Weight of SparK's own loss, normalised pixels, through a decoder of its
            own. Defaults to 0.0, none.
        input_size (int): Height and width of the images. Defaults to 224.
        downsample_ratio (int): Side of a cell in pixels, the stride of the deepest map. Defaults to
            32.
        teacher_size (int, optional): Resize images to this side for the teacher. Defaults to None,
            ``input_size``.
        teacher_preprocessor (dict, optional): ``mean``, ``std``, ``to_rgb`` that the teacher was
            trained with. Defaults to None, the student's.
        data_preprocessor (dict, optional): See the stock ``SelfSupDataPreprocessor``.
        init_cfg (dict, optional): Defaults to None.

    Raises:
        ValueError: If sizes do not divide, or an option is out of its range; the message says which.

    Example:
        >>> model = dict(
        ...     type='mmextra.HGKD',
        ...     backbone=dict(type='SparseResNet', depth=50, out_indices=(0, 1, 2, 3)),
        ...     teacher=dict(type='VisionTransformer', arch='b', out_type='featmap',
        ...                  init_cfg=dict(type='Pretrained', checkpoint='mae_vit_b.pth',
        ...                                prefix='backbone.')))
    """

    # Random cells that stay visible: the stock sampler.
    sample_cells = SparK.mask

    def __init__(
        self,
        backbone: dict,
        teacher: dict,
        decoder: dict = dict(width=512),
        token_head: dict = dict(),
        mask_ratio: float = 0.6,
        teacher_view: str = 'full',
        masked_weight: float = 1.0,
        visible_weight: float = 1.0,
        pixel_weight: float = 0.0,
        input_size: int = 224,
        downsample_ratio: int = 32,
        teacher_size: Optional[int] = None,
        teacher_preprocessor: Optional[dict] = None,
        data_preprocessor: Union[dict, nn.Module, None] = None,
        init_cfg: Optional[dict] = None,
    ) -> None:
        super().__init__(backbone, data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        # Beside the model, not in it: neither trained nor saved.
        self.__dict__['teacher'] = PRETRAIN_MODELS.build(teacher)
        self.teacher.requires_grad_(False)
        self.teacher.eval()
        self.teacher_view = teacher_view
        self.teacher_size = teacher_size or input_size
        self.teacher_pixels = None
        if teacher_preprocessor is not None:
            teacher_preprocessor = dict(type='SelfSupDataPreprocessor', **teacher_preprocessor)
            self.teacher_pixels = PixelFormat.of(PRETRAIN_MODELS.build(teacher_preprocessor))

        self.input_size, self.downsample_ratio = input_size, downsample_ratio
        self.feature_map_size = input_size // downsample_ratio  # f, cells in a row
        self.len_keep = round(self.feature_map_size**2 * (1 - mask_ratio))
        self.teacher_grid = self._teacher_grid()  # g, tokens in a row
        if teacher_view == 'visible':
            masked_weight = 0.0
        channels, stride = encoder_maps(self.backbone)
        self._check(stride, mask_ratio, masked_weight, visible_weight)

        cells = input_size * 2 ** (len(channels) - 1) // downsample_ratio  # of the shallowest map
        if cells % self.teacher_grid or self.teacher_grid % self.feature_map_size:
            raise ValueError(
                f"the teacher's {self.teacher_grid} tokens in a row must divide the {cells} cells of the "
                f"student's shallowest map, and be a multiple of the {self.feature_map_size} cells of the "
                'mask: choose teacher_size, input_size or downsample_ratio accordingly'
            )
        self.neck = UNetTokenDecoder(
            channels, self.teacher.embed_dims, cells // self.teacher_grid, **decoder
        )
        self.head = TokenDistillHead(masked_weight, visible_weight, **token_head)
        self.pixel_weight = pixel_weight
        if pixel_weight:
            if decoder.get('width', 512) % downsample_ratio:
                raise ValueError(
                    f'decoder.width is halved down to single pixels: make it a multiple of '
                    f'{downsample_ratio}, or set pixel_weight=0; got {decoder["width"]}'
                )
            self.pixel_decoder = PRETRAIN_MODELS.build(
                dict(
                    type='SparKLightDecoder',
                    feature_dim=decoder.get('width', 512),
                    upsample_ratio=downsample_ratio,
                    norm_cfg=decoder.get('norm_cfg', dict(type='SyncBN')),
                )
            )
            self.pixel_head = PRETRAIN_MODELS.build(
                dict(
                    type='SparKPretrainHead',
                    loss=dict(type='PixelReconstructionLoss', criterion='L2'),
                    patch_size=downsample_ratio,
                )
            )

    def _teacher_grid(self) -> int:
        """Tokens in a row that the teacher makes of an image."""
        teacher = self.teacher
        if not all(hasattr(teacher, k) for k in ('embed_dims', 'patch_resolution', 'img_size')):
            raise ValueError(
                f'the teacher must be a VisionTransformer or its kin, got {type(teacher).__name__}'
            )
        patch = teacher.img_size[0] // teacher.patch_resolution[0]
        if self.teacher_size % patch:
            raise ValueError(
                f"teacher_size must be a multiple of the teacher's patches of {patch} pixels, got "
                f'{self.teacher_size}'
            )
        return self.teacher_size // patch

    def _check(
        self, stride: int, mask_ratio: float, masked_weight: float, visible_weight: float
    ) -> None:
        """Raise ``ValueError`` if sizes do not divide, or an option is out of its range."""
        teacher = self.teacher
        if stride != self.downsample_ratio or self.input_size % stride:
            raise ValueError(
                f'downsample_ratio must be the stride of the deepest stage of the encoder, {stride} '
                f'(fewer stages: backbone.num_stages), and divide input_size; got '
                f'{self.downsample_ratio} for images of {self.input_size}'
            )
        if not 0 <= mask_ratio < 1 or self.len_keep < 1:
            raise ValueError(
                f'mask_ratio must leave at least one of {self.feature_map_size**2} cells visible, got '
                f'{mask_ratio}'
            )
        if self.teacher_view not in TEACHER_VIEWS:
            raise ValueError(
                f'teacher_view must be one of {TEACHER_VIEWS}, got {self.teacher_view!r}'
            )
        if self.teacher_view == 'visible' and not (
            isinstance(teacher, MAEViT) and teacher.img_size[0] == self.teacher_size
        ):
            raise ValueError(
                "teacher_view='visible' needs a teacher of type 'MAEViT' with "
                f'img_size={self.teacher_size}, got {type(teacher).__name__} with {teacher.img_size[0]}'
            )
        if not masked_weight and not visible_weight:
            raise ValueError(
                'there is nothing to learn: give masked_weight or visible_weight, the latter if '
                "teacher_view is 'visible'"
            )
        if any(getattr(module, 'with_cp', False) for module in self.backbone.modules()):
            raise ValueError(
                'with_cp=True would run sparse convolutions again in the backward pass, when the cells '
                'are forgotten: set backbone.with_cp=False'
            )

    def init_weights(self) -> None:
        """Initialise the student, and load the teacher."""
        super().init_weights()
        load_teacher(self.teacher)

    def _apply(self, *args, **kwargs) -> 'HGKD':
        """Let ``.to()`` and the like move the teacher, too."""
        self.teacher._apply(*args, **kwargs)
        return super()._apply(*args, **kwargs)

    def _require_square(self, inputs: Tensor, side: Optional[int] = None) -> None:
        """Raise ``ValueError`` unless these are square images, of this side if one is given."""
        if not isinstance(inputs, Tensor):
            raise ValueError(
                "HGKD takes a batch of single images: set collate_fn=dict(type='default_collate') in "
                'the data loader, and pack one view'
            )
        height, width = inputs.shape[-2:]
        if height != width or height % self.downsample_ratio or side not in (None, height):
            raise ValueError(
                f'images must be square, of side {side or f"k * {self.downsample_ratio}"}; got '
                f'{height}x{width}. Resize or crop them, or set input_size.'
            )

    def encode(self, inputs: Tensor, active: Tensor) -> Tuple[Tensor]:
        """The encoder's maps of the visible cells; to be called within :func:`visible_cells`.

        Args:
            inputs (Tensor): Images, (B, 3, S, S).
            active (Tensor): Visible cells, boolean (B, 1, f, f).

        Returns:
            tuple[Tensor]: (B, C_i, H_i, W_i), shallow to deep, zero at masked cells.
        """
        visible = spread(active, self.downsample_ratio)
        return self.backbone(torch.where(visible, inputs, inputs.new_zeros(())))

    def extract_feat(self, inputs: Tensor) -> Tuple[Tensor]:
        """The encoder's maps of whole images."""
        self._require_square(inputs)
        cells = inputs.shape[-1] // self.downsample_ratio
        active = inputs.new_ones(len(inputs), 1, cells, cells, dtype=torch.bool)
        with visible_cells(active):
            return self.encode(inputs, active)

    @torch.no_grad()
    def teacher_tokens(self, inputs: Tensor, active: Tensor) -> Tensor:
        """The teacher's tokens, (B, D, g, g), after its final norm; zero where it sees nothing.

        Args:
            inputs (Tensor): Images as the student gets them, (B, 3, S, S).
            active (Tensor): Visible cells, boolean (B, 1, f, f).

        Raises:
            ValueError: If the teacher gives anything but a map of tokens.
        """
        if self.teacher_pixels is not None:
            student_pixels = PixelFormat.of(self.data_preprocessor)
            inputs = student_pixels.convert(inputs, self.teacher_pixels, None)
        if self.teacher_size != inputs.shape[-1]:
            inputs = F.interpolate(
                inputs,
                size=(self.teacher_size,) * 2,
                mode='bilinear',
                align_corners=False,
                antialias=True,
            )
        if self.teacher_view == 'visible':
            return self._tokens_of_visible(inputs, active)
        whole = dict(mask=None) if isinstance(self.teacher, MAEViT) else {}
        tokens = self.teacher(inputs, **whole)[-1]
        expected = (len(inputs), self.teacher.embed_dims, self.teacher_grid, self.teacher_grid)
        if tokens.shape != expected:
            raise ValueError(
                f'the teacher gives {tuple(tokens.shape)}, expected a map of tokens {expected}: set '
                "teacher.out_type='featmap'"
            )
        return tokens

    def _tokens_of_visible(self, inputs: Tensor, active: Tensor) -> Tensor:
        """As MAE encodes: masked patches are taken away before the first layer."""
        vit, side = self.teacher, self.teacher_grid
        x = vit.patch_embed(inputs)[0] + vit.pos_embed[:, 1:]  # (B, N, D)
        visible = spread(active, side // self.feature_map_size).flatten(1)
        count = self.len_keep * (side // self.feature_map_size) ** 2
        kept = visible.int().argsort(dim=1, descending=True, stable=True)[:, :count]
        kept = kept.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        cls_token = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(x), -1, -1)
        y = torch.cat([cls_token, x.gather(1, kept)], 1)
        for layer in vit.layers:
            y = layer(y)
        y = vit.norm1(y)[:, 1:]
        tokens = y.new_zeros(x.shape).scatter(1, kept, y)
        return tokens.transpose(1, 2).unflatten(2, (side, side))

    def _norms_of_one_position(self, batch: int) -> nn.ModuleList:
        """Batch norms that cannot take statistics of this batch: a single cell is visible in it."""
        if batch * self.len_keep > 1:
            return nn.ModuleList()
        return nn.ModuleList(
            m
            for m in self.modules()
            if isinstance(m, _BatchNorm)
            and not (isinstance(m, nn.SyncBatchNorm) and is_distributed())
        )

    def loss(
        self, inputs: Tensor, data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Losses of one batch of images (B, 3, S, S); ``data_samples`` are not used."""
        self._require_square(inputs, self.input_size)
        # Processes that were seeded alike still draw masks of their own.
        seed = int(torch.randint(2**31, ())) + get_rank()
        generator = torch.Generator().manual_seed(seed)
        active = self.sample_cells(inputs.shape, inputs.device, generator)
        with visible_cells(active), evaluating(self._norms_of_one_position(len(inputs))):
            dense = self.neck.densify(self.encode(inputs, active), active)
            losses = self.head(self.neck.decode(dense), self.teacher_tokens(inputs, active), active)
            if self.pixel_weight:
                pixels = self.pixel_head(self.pixel_decoder(dense), inputs, active)
                losses['loss_pixel'] = self.pixel_weight * pixels
        return losses
