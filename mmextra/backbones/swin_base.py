"""What the papers of this wing that change a Swin transformer have in common. Nothing is registered here."""

import re
from typing import Sequence, Union

from mmengine.model import BaseModule
from mmpretrain.models import SwinTransformer
from torch import Tensor

from mmextra.engine.checkpoint import StateDict, is_checkpoint_init

# The authors' initialisation, for hosts whose configs do not set it.
INIT_CFG = [
    dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
]


class SwinBackbone(SwinTransformer):
    """The host's ``SwinTransformer``, whose ``train()`` and ``eval()`` return the module, as any other's do."""

    def __init__(self, arch: dict, *args, out_indices: Sequence[int] = (3,), **kwargs) -> None:
        stages = len(arch['depths'])
        if not out_indices or not all(0 <= i < stages for i in out_indices):
            raise ValueError(f'out_indices must be some of 0 to {stages - 1}, got {out_indices}')
        super().__init__(arch, *args, out_indices=out_indices, **kwargs)

    @classmethod
    def settings_of(cls, arch: Union[str, dict]) -> dict:
        """The settings that a name or a dict stands for.

        Raises:
            ValueError: If the name is unknown, or the dict has other keys than these three.
        """
        if isinstance(arch, str):
            if arch.lower() not in cls.arch_zoo:
                raise ValueError(f'arch {arch!r} is unknown, choose from {sorted(cls.arch_zoo)}')
            arch = cls.arch_zoo[arch.lower()]
        if set(arch) != {'embed_dims', 'depths', 'num_heads'}:
            raise ValueError(
                f'arch needs the keys embed_dims, depths, num_heads; got {sorted(arch)}'
            )
        if len(arch['depths']) != len(arch['num_heads']):
            raise ValueError(
                f'arch must have as many depths as num_heads, got {arch["depths"]}, {arch["num_heads"]}'
            )
        return dict(arch)

    def init_weights(self) -> None:
        """Initialise the weights, unless ``init_cfg`` loads a checkpoint."""
        if is_checkpoint_init(self.init_cfg):  # the host would draw the absolute positions anew
            BaseModule.init_weights(self)
        else:
            super().init_weights()

    def train(self, mode: bool = True) -> 'SwinBackbone':
        """Set the mode; what is frozen stays in eval mode."""
        super().train(mode)
        return self


def swin_keys(state: StateDict) -> StateDict:
    """Map the flat keys of an official Swin transformer to those of an mm checkpoint of a classifier or detector.

    Args:
        state (dict): Keys ``patch_embed.*``, ``layers.{s}.blocks.{i}.*``, ``layers.{s}.downsample.*``; ``norm`` and
            ``head`` of a classifier, or ``norm{s}`` of a backbone with several outputs. With ``backbone.`` in front
            in a whole detector or segmentor, whose further parts have the host's names.

    Returns:
        dict: Keys ``backbone.*`` and ``head.fc.*``. What is not Swin's in a block keeps its name, and so do the
        further parts of a detector or segmentor.
    """
    whole = any(key.startswith('backbone.') for key in state)
    further = {k: v for k, v in state.items() if whole and not k.startswith('backbone.')}
    state = {k.removeprefix('backbone.'): v for k, v in state.items() if k not in further}
    last = max((int(k.split('.')[1]) for k in state if k.startswith('layers.')), default=0)
    window_attention = tuple(
        key.removesuffix('qkv.weight') for key in state if key.endswith('.attn.qkv.weight')
    )
    mapped = dict(further)
    for key, value in state.items():
        if key.endswith('attn_mask'):  # the host computes it
            continue
        if key.startswith('head.'):
            mapped[key.replace('head.', 'head.fc.')] = value
            continue
        if '.downsample.' in key:
            value = reorder_patch_merging(value)
        if key.startswith(window_attention):
            key = key.replace('.attn.', '.attn.w_msa.')
        key = re.sub(r'^norm\.', f'norm{last}.', key)
        key = re.sub(r'^layers\.', 'stages.', key)
        key = key.replace('.mlp.fc1.', '.ffn.layers.0.0.').replace('.mlp.fc2.', '.ffn.layers.1.')
        key = key.replace('patch_embed.proj.', 'patch_embed.projection.')
        mapped[f'backbone.{key}'] = value
    return mapped


def reorder_patch_merging(value: Tensor) -> Tensor:
    """Reorder the input channels of an official patch merging, for mmcv's ``PatchMerging``.

    The authors join four maps, of the pixels (0, 0), (1, 0), (0, 1) and (1, 1) of each 2x2 patch; ``nn.Unfold`` keeps
    the four pixels of a channel together, row by row.

    Args:
        value (Tensor): (..., 4C): the weight of the reduction, or weight or bias of the norm before it.
    """
    pixels = value.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
    return pixels.transpose(-1, -2).flatten(-2)
