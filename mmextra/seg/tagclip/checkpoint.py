"""Weights of OpenAI's CLIP and of the authors' TagCLIP, for arXiv 2304.07547."""

import math
import re
import warnings
import zipfile
from pathlib import Path
from typing import Union

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from mmextra.engine.checkpoint import (
    StateDict,
    load_official,
    read_checkpoint,
    register_layout,
    state_dict_of,
)

# Numbers, not weights, that OpenAI's archives hold.
CLIP_NUMBERS = ('input_resolution', 'context_length', 'vocab_size')
TEXT_NAMES = (
    (r'^transformer\.resblocks\.(\d+)\.', r'transformer.\1.'),
    (r'(transformer\.\d+)\.attn\.', r'\1.attentions.0.attn.'),
    (r'(transformer\.\d+)\.mlp\.c_fc\.', r'\1.ffns.0.layers.0.0.'),
    (r'(transformer\.\d+)\.mlp\.c_proj\.', r'\1.ffns.0.layers.1.'),
    (r'(transformer\.\d+)\.ln_1\.', r'\1.norms.0.'),
    (r'(transformer\.\d+)\.ln_2\.', r'\1.norms.1.'),
)
HEAD_NAMES = (
    (r'^disc_token$', 'trusty_token'),
    (r'^relationship_discriptor\.q_proj\.', 'descriptor.'),
    (r'^decoder\.layers\.(\d+)\.multihead_attn\.', r'decoder.\1.cross_attn.'),
    (r'^decoder\.layers\.(\d+)\.linear1\.', r'decoder.\1.ffn.layers.0.0.'),
    (r'^decoder\.layers\.(\d+)\.linear2\.', r'decoder.\1.ffn.layers.1.'),
    (r'^decoder\.layers\.(\d+)\.', r'decoder.\1.'),
)
RENAMED = dict(backbone=(), text_encoder=TEXT_NAMES, decode_head=HEAD_NAMES)


def _part_and_name(key: str, bare: str) -> tuple:
    """The part of the segmentor that a key belongs to, and the key within it."""
    prefix, _, name = key.partition('.')
    if prefix == 'visual':
        return 'backbone', name
    return (prefix, name) if prefix in RENAMED else (bare, key)


@register_layout('tagclip')
def official_layout(state: StateDict) -> StateDict:
    """Map the keys of OpenAI's CLIP, or of the authors' TagCLIP and ZegCLIP, to those of ``TagCLIP``.

    The image tower keeps its names; the text tower gets those of mmseg's ``CLIPTextEncoder``. Half
    precision becomes single. A text tower without temperature gets CLIP's initial one, which the
    normalised rows do not depend on.
    """
    bare = 'decode_head'
    if 'token_embedding.weight' in state:
        bare = 'text_encoder'
    elif 'class_embedding' in state:
        bare = 'backbone'
    mapped = {}
    for key, value in state.items():
        part, name = _part_and_name(key, bare)
        if key in CLIP_NUMBERS or (part == 'decode_head' and name.startswith('loss_decode.')):
            continue
        for pattern, replacement in RENAMED[part]:
            name = re.sub(pattern, replacement, name)
        mapped[f'{part}.{name}'] = value.float() if value.is_floating_point() else value
    if any(k.startswith('text_encoder.') for k in mapped):
        mapped.setdefault('text_encoder.logit_scale', torch.tensor(math.log(1 / 0.07)))
    return mapped


def read_clip(path: str) -> StateDict:
    """Read a state dict, or the TorchScript archive that OpenAI ships (``ViT-B-16.pt``).

    Of an archive the weights are taken; its methods, which are TorchScript's and not Python's, are not
    called.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is neither.
    """
    file = Path(path).expanduser()
    try:
        return state_dict_of(read_checkpoint(str(path)))
    except ValueError:
        if not file.is_file() or not _is_torchscript(file):
            raise
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch advises against writing such archives
        return dict(torch.jit.load(file, map_location='cpu').state_dict())


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith('/constants.pkl') for name in archive.namelist())


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """Resize the positions (1 + g * g, C) of a square grid to (1 + grid * grid, C), bilinearly."""
    side = math.isqrt(len(positions) - 1)
    if side == grid or side * side != len(positions) - 1:
        return positions
    patches = positions[1:].unflatten(0, (1, side, side)).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=(grid, grid), mode='bilinear', align_corners=False)
    return torch.cat((positions[:1], patches.flatten(2)[0].T))


def checkpoint_of(init_cfg: Union[dict, list]) -> str:
    """The file that an ``init_cfg`` loads."""
    cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    return next(cfg['checkpoint'] for cfg in cfgs if 'checkpoint' in cfg)


def load_clip(module: nn.Module, path: str, part: str = '') -> None:
    """Load CLIP or TagCLIP weights into a ``TagCLIP`` or one part of it, strictly.

    Prompts and head, which CLIP does not have, keep their values where the file lacks all of them.
    Everything else is accounted for, key by key. The positions of the image tower are resized to the
    grid of the model.

    Args:
        module (nn.Module): The segmentor, its backbone or its text encoder.
        path (str): A state dict or a TorchScript archive.
        part (str): ``'backbone'`` or ``'text_encoder'`` where ``module`` is that part. Defaults to
            ``''``, the whole segmentor.

    Raises:
        ValueError: If a key is missing or left over, or a shape differs.
    """
    state = official_layout(read_clip(path))
    own = module.state_dict()
    prefix = f'{part}.' if part else ''
    if part:
        state = {k: v for k, v in state.items() if k.startswith(prefix)}
    elif not any(k.startswith('text_encoder.') for k in own):
        state = {k: v for k, v in state.items() if not k.startswith('text_encoder.')}
    own = {prefix + k: v for k, v in own.items()}
    positions = 'backbone.positional_embedding'
    if positions in own and positions in state:
        grid = math.isqrt(len(own[positions]) - 1)
        state[positions] = resize_positions(state[positions], grid)
    for absent_in_clip in (_is_prompt, _is_head):
        if not any(map(absent_in_clip, state)):
            state.update({k: v for k, v in own.items() if absent_in_clip(k)})
    load_official(module, state, 'tagclip')
    print_log(f'loaded {path} into {type(module).__name__}', 'current')


def _is_prompt(key: str) -> bool:
    return key.startswith('backbone.') and 'prompt' in key


def _is_head(key: str) -> bool:
    return key.startswith('decode_head.')
