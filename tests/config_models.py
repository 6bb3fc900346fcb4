"""The models of configs, built without their weights."""

from contextlib import contextmanager
from functools import partial

import torch
from mmengine.config import ConfigDict


def without_files(node):
    """The config without weights to download, and without files of language embeddings."""
    if isinstance(node, dict):
        if node.get('source') == 'file':
            return dict(source='hash')
        return {
            k: without_files(v)
            for k, v in node.items()
            if not (k == 'init_cfg' and isinstance(v, dict) and 'checkpoint' in v)
        }
    return [without_files(v) for v in node] if isinstance(node, (list, tuple)) else node


def model_of(cfg):
    """The model config as the runner would build it, without weights to download."""
    model = without_files(cfg.model.to_dict())
    if 'data_preprocessor' in cfg:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return ConfigDict(model, _scope_=cfg.default_scope)


@contextmanager
def weightless():
    """Where models are built without memory: shapes are checked, values are not there."""
    linspace = torch.linspace
    # Hosts read their drop path rates off a tensor.
    torch.linspace = partial(linspace, device='cpu')
    try:
        with torch.device('meta'):
            yield
    finally:
        torch.linspace = linspace
