"""Frozen language embeddings of category names, and the label spaces that the names belong to (METR).

Language-aware Multiple Datasets Detection Pretraining for DETRs (arXiv 2304.03580).
"""

import difflib
import functools
import hashlib
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmextra.engine.arguments import check
from mmextra.engine.arrays import read_arrays
from mmextra.engine.checkpoint import read_checkpoint, state_dict_of
from mmextra.registry import DATASETS, MODELS

TEMPLATE = 'a photo of a {}.'
# A label space as a config gives it: the names, or a dataset class that has them in its METAINFO.
LabelSpace = Union[str, Sequence[str]]


def resolve_label_space(name: str, space: LabelSpace) -> Tuple[str, ...]:
    """The category names of a label space.

    Args:
        name (str): What the label space is called; for messages.
        space (str | Sequence[str]): The names themselves, or a registered dataset class, say
            ``'mmdet.CocoDataset'``.

    Raises:
        ValueError: If the class has no category names, or the names are none, empty or repeated.
    """
    names = space
    if isinstance(space, str):
        try:
            dataset = DATASETS.get(space)
        except KeyError as error:
            raise KeyError(f'label_spaces[{name!r}]: {error.args[0]}') from None
        names = getattr(dataset, 'METAINFO', {}).get('classes')
        if not names:
            raise ValueError(
                f'label_spaces[{name!r}] is {space!r}, expected a dataset class with '
                "METAINFO['classes'], or a list of category names"
            )
    if not isinstance(names, (list, tuple)):
        raise ValueError(
            f'label_spaces[{name!r}] must be a list of category names, found {names!r}'
        )
    names = tuple(names)
    if not names or not all(isinstance(n, str) and n.strip() for n in names):
        raise ValueError(f'label_spaces[{name!r}] must hold category names, found {names!r}')
    repeated = sorted({n for n in names if names.count(n) > 1})
    if repeated:
        raise ValueError(
            f'label_spaces[{name!r}] names {", ".join(repeated)} more than once: two categories of '
            'one label space cannot share an embedding'
        )
    return names


# Sources


@functools.cache
def _hashed(text: str, dims: int) -> np.ndarray:
    """A vector of normal numbers seeded by the sha256 of a text."""
    seed = np.frombuffer(hashlib.sha256(text.encode()).digest(), '<u4')
    return np.random.RandomState(seed).standard_normal(dims)


def hashed_names(names: Sequence[str], dims: int = 512) -> np.ndarray:
    """One random direction for each lower-cased name; unlike names are unrelated.

    Args:
        names (Sequence[str]): V category names.
        dims (int): Length of an embedding. Defaults to 512.

    Returns:
        np.ndarray: (V, dims).
    """
    check('dims', 'dims', dims, int)
    return np.stack([_hashed(name.lower(), dims) for name in names])


def hashed_characters(names: Sequence[str], dims: int = 512) -> np.ndarray:
    """The sum of the random directions of all three-letter pieces: names with common parts are
    near each other, as ``'bus'`` and ``'school bus'`` are.

    Args:
        names (Sequence[str]): V category names.
        dims (int): Length of an embedding. Defaults to 512.

    Returns:
        np.ndarray: (V, dims).
    """
    check('dims', 'dims', dims, int)
    padded = [f'<{name.lower()}>' for name in names]
    return np.stack(
        [sum(_hashed(text[i : i + 3], dims) for i in range(len(text) - 2)) for text in padded]
    )


def read_embeddings(names: Sequence[str], path: str) -> np.ndarray:
    """Look names up in a file that ``tools/make_category_embeddings.py`` wrote.

    Args:
        names (Sequence[str]): V category names.
        path (str): An ``.npz`` file with ``names`` and ``embeddings``.

    Returns:
        np.ndarray: (V, dims).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no file of embeddings, or lacks a name.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f'there is no file of category embeddings {path!r}: write it with '
            'tools/make_category_embeddings.py'
        )
    try:
        known, vectors = read_arrays(file, 'names', 'embeddings')
    except ValueError as error:
        raise ValueError(f'{path} is no file of category embeddings ({error})') from error
    if known.ndim != 1 or vectors.ndim != 2 or len(known) != len(vectors):
        raise ValueError(
            f'{path} must hold V names and embeddings (V, dims), found {known.shape} and {vectors.shape}'
        )
    known = known.tolist()
    index = {name: i for i, name in enumerate(known)}
    missing = [name for name in names if name not in index]
    if missing:
        near = difflib.get_close_matches(missing[0], known, n=3)
        hint = f'; near {missing[0]!r} it has {", ".join(near)}' if near else ''
        raise ValueError(
            f'{path} has no embedding of: {", ".join(missing[:10])} ({len(missing)} of '
            f'{len(names)} names){hint}. Another name is another embedding: use the names that the '
            'file was made with, or make it anew'
        )
    return vectors[[index[name] for name in names]]


def encode_with_transformers(
    names: Sequence[str], path: str, template: str = TEMPLATE
) -> np.ndarray:
    """Embed names with a local model folder of Hugging Face's ``transformers``.

    CLIP and its kin give their projected text embedding, encoders such as BERT the mean over the
    tokens of their last layer.

    Args:
        names (Sequence[str]): V category names.
        path (str): Folder with ``config.json``, weights and tokenizer. Nothing is downloaded.
        template (str): Sentence around a name. Defaults to ``'a photo of a {}.'``.

    Returns:
        np.ndarray: (V, dims).

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    if not Path(path).expanduser().is_dir():
        raise FileNotFoundError(f'there is no folder of a language model {path!r}')
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    local = dict(local_files_only=True)
    tokens = AutoTokenizer.from_pretrained(path, **local)(
        [template.format(name) for name in names], padding=True, return_tensors='pt'
    )
    model = AutoModel.from_pretrained(path, **local).eval()
    with torch.no_grad():
        if hasattr(AutoConfig.from_pretrained(path, **local), 'projection_dim'):
            return model.get_text_features(**tokens).float().numpy()
        states = model(**tokens).last_hidden_state.float()
    weight = tokens['attention_mask'][..., None]
    return ((states * weight).sum(1) / weight.sum(1)).numpy()


def encode_with_mmpretrain(
    names: Sequence[str],
    path: str,
    checkpoint: Optional[str] = None,
    tokenizer: Optional[str] = None,
    template: str = TEMPLATE,
) -> np.ndarray:
    """Embed names with the text encoder of a CLIP of mmpretrain.

    Args:
        names (Sequence[str]): V category names.
        path (str): Its config, a path or ``'mmpretrain::clip/...'``.
        checkpoint (str, optional): Its weights. Defaults to None, random ones.
        tokenizer (str, optional): Local folder of its tokenizer. Defaults to None, the one that the
            config names, which transformers may have to download.
        template (str): Sentence around a name. Defaults to ``'a photo of a {}.'``.

    Returns:
        np.ndarray: (V, dims).
    """
    import mmpretrain.models  # noqa: F401  registers them

    cfg = get_config(path).model if '::' in path else Config.fromfile(path).model
    if tokenizer is not None:
        cfg.tokenizer.name_or_path = tokenizer
    model = MODELS.build(dict(cfg, _scope_='mmpretrain')).eval()
    if checkpoint is not None:
        model.load_state_dict(state_dict_of(read_checkpoint(checkpoint)))
    with torch.no_grad():
        tokens = model.tokenize([template.format(name) for name in names])
        return model.extract_text_feat(tokens).float().numpy()


SOURCES = dict(
    file=read_embeddings,
    transformers=encode_with_transformers,
    mmpretrain=encode_with_mmpretrain,
    hash=hashed_names,
    characters=hashed_characters,
)


def embed_names(names: Sequence[str], source: str = 'characters', **options) -> Tensor:
    """Language embeddings of category names, of length one.

    Args:
        names (Sequence[str]): V category names.
        source (str): A key of :data:`SOURCES`. Defaults to ``'characters'``, which needs no file.
        options: Arguments of the source.

    Returns:
        Tensor: (V, dims), float32.

    Raises:
        ValueError: If the source is unknown, or gives no finite vectors.
    """
    if not isinstance(source, str) or source not in SOURCES:
        raise ValueError(f'no source {source!r} of embeddings; there are {", ".join(SOURCES)}')
    vectors = torch.from_numpy(np.asarray(SOURCES[source](names, **options), np.float32))
    lengths = vectors.norm(dim=1, keepdim=True)
    if not (torch.isfinite(lengths).all() and (lengths > 0).all()):
        raise ValueError(
            f'embeddings from {options.get("path", source)!r} must be finite and not zero'
        )
    return vectors / lengths


class LabelSpaces(BaseModule):
    """The categories of several label spaces, as vectors of the detector's width.

    A name that occurs in two label spaces has one embedding; nothing else is shared.

    Args:
        label_spaces (dict): Name of a label space -> category names or dataset class.
        embeddings (dict): Arguments of :func:`embed_names`.
        embed_dims (int): Width of the detector. Defaults to 256.

    Attributes:
        table (Tensor): (V, dims), the frozen embeddings of all names; not part of checkpoints.
        names (dict): Name of a label space -> its category names.

    Raises:
        ValueError: If there is no label space, or two names of one have the same embedding.
    """

    def __init__(
        self, label_spaces: Dict[str, LabelSpace], embeddings: dict, embed_dims: int = 256
    ) -> None:
        super().__init__()
        if not label_spaces:
            raise ValueError(
                "label_spaces names no label space, expected some, as dict(coco='mmdet.CocoDataset')"
            )
        self.names = {k: resolve_label_space(k, v) for k, v in label_spaces.items()}
        every = sorted({name for names in self.names.values() for name in names})
        index = {name: i for i, name in enumerate(every)}
        self.rows = {k: [index[n] for n in names] for k, names in self.names.items()}
        self.register_buffer('table', embed_names(every, **embeddings), persistent=False)
        for space, rows in self.rows.items():
            self._check_distinct(space, self.table[rows])
        self.proj = nn.Sequential(
            nn.Linear(self.table.shape[1], embed_dims), nn.LayerNorm(embed_dims)
        )

    def _check_distinct(self, space: str, vectors: Tensor) -> None:
        """Refuse two categories of a label space that no query could tell apart."""
        _, kind, counts = vectors.unique(dim=0, return_inverse=True, return_counts=True)
        if (counts > 1).any():
            same = (kind == counts.argmax()).nonzero().squeeze(1).tolist()
            names = ', '.join(repr(self.names[space][i]) for i in same)
            raise ValueError(
                f'label_spaces[{space!r}]: {names} have the same embedding, so that no query can tell '
                'them apart: does the text encoder know these names, and tell upper from lower case?'
            )

    def init_weights(self) -> None:
        """No bias before the norm: it would make all categories alike."""
        nn.init.xavier_uniform_(self.proj[0].weight)
        nn.init.zeros_(self.proj[0].bias)

    def forward(self, spaces: List[str]) -> Tuple[Tensor, Tensor]:
        """Vectors of the categories of each image's label space (2).

        Args:
            spaces (list[str]): Label space of each of B images.

        Returns:
            tuple: Vectors (B, K, embed_dims), where K is the size of the largest label space of the
            batch, and the sizes (B,). What lies beyond the size of a label space is padding.
        """
        sizes = [len(self.rows[space]) for space in spaces]
        # Padding repeats a category of the same label space, so that it touches no other.
        rows = [self.rows[s] + [self.rows[s][0]] * (max(sizes) - k) for s, k in zip(spaces, sizes)]
        rows = torch.tensor(rows, device=self.table.device)
        return self.proj(self.table)[rows], torch.tensor(sizes, device=rows.device)
