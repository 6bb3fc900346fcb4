"""Every shipped config builds, and trains two iterations when shrunk."""

import copy
from contextlib import contextmanager
from functools import cache, partial

import pytest
import torch
from drawn_rectangles import draw_rectangles, oriented_dataset
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from training import ROOT, SIZE, coco_dataset, train

CONFIGS = sorted(
    p.relative_to(ROOT / 'configs').as_posix()
    for p in (ROOT / 'configs').glob('*/*.py')
    if p.parent.name != '_base_'
)
# A step of a larger model takes too long for a test; such configs are built only.
LARGEST = 60e6
SHAPES = 6
DRAWN = ('circle', 'square', 'triangle', 'star', 'cross', 'heart')


@cache
def _read(name):
    return Config.fromfile(ROOT / 'configs' / name)


def load(name):
    return copy.deepcopy(_read(name))


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


def with_classes(node, count):
    """The config for another number of classes, or for the drawn ones as its only label space."""
    if isinstance(node, dict):
        drawn = dict(num_classes=count, label_spaces=dict(drawn=DRAWN), test_label_space=None)
        return {k: drawn[k] if k in drawn else with_classes(v, count) for k, v in node.items()}
    return [with_classes(v, count) for v in node] if isinstance(node, (list, tuple)) else node


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


def parameters(cfg):
    with weightless():
        return sum(p.numel() for p in MODELS.build(model_of(cfg)).parameters())


@pytest.mark.parametrize('name', CONFIGS)
def test_builds(name):
    cfg = load(name)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    with weightless():
        model = MODELS.build(model_of(cfg))
    assert sum(p.numel() for p in model.parameters()) > 0
    assert cfg.train_dataloader and cfg.optim_wrapper and cfg.train_cfg


def small_dataset(cfg, root, masks):
    """Drawn images with boxes of the kind that the config trains on."""
    if 'Oriented' in cfg.train_dataloader.dataset.type:
        return oriented_dataset(draw_rectangles(root.parent / 'rectangles'), 'train', train=True)
    return coco_dataset(root, 'train', train=True, masks=masks)


def shrink_detection(cfg, root, work_dir):
    """Two iterations on two small drawn images."""
    model = with_classes(without_files(cfg.model.to_dict()), SHAPES)
    if 'num_queries' in model:  # a small image has fewer tokens than a two-stage DETR 900 queries
        model['num_queries'] = min(model['num_queries'], 100)
    hooks = []
    for hook in copy.deepcopy(cfg.get('custom_hooks') or []):
        if 'teacher' in hook:
            source = hook['teacher']['config']
            teacher = get_config(source) if isinstance(source, str) else Config(source)
            teacher_model = with_classes(without_files(teacher.model.to_dict()), SHAPES)
            hook['teacher'].update(
                config=dict(model=teacher_model, default_scope=teacher.default_scope),
                checkpoint=None,
            )
        hooks.append(hook)
    masks = bool(model.get('roi_head', {}).get('mask_head'))
    return Config(
        dict(
            default_scope='mmdet',
            model=model,
            custom_hooks=hooks,
            work_dir=str(work_dir),
            train_dataloader=dict(
                batch_size=2,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=True),
                dataset=small_dataset(cfg, root, masks),
            ),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=2),
            optim_wrapper=dict(cfg.optim_wrapper, type='OptimWrapper'),
            log_level='WARNING',
            default_hooks=dict(logger=dict(type='LoggerHook', interval=1), checkpoint=None),
            randomness=dict(seed=0),
        )
    )


def detection_configs():
    """Those of mmdet; of configs that differ in nothing but data and schedule, the first."""
    seen = {}
    for name in CONFIGS:
        cfg = load(name)
        if cfg.get('default_scope') == 'mmdet':
            seen.setdefault(repr((cfg.model, cfg.get('custom_hooks'))), name)
    return list(seen.values())


@pytest.mark.parametrize('name', detection_configs())
def test_detection_config_trains(name, shapes_root, tmp_path):
    cfg = load(name)
    init_default_scope('mmdet')
    if parameters(cfg) > LARGEST:
        pytest.skip(f'{name}: more than {LARGEST:.0f} parameters, built only')
    runner = train(shrink_detection(cfg, shapes_root, tmp_path))
    assert runner.iter == 2
    scalars = runner.message_hub.log_scalars['train/loss']
    assert all(torch.isfinite(torch.tensor(v)) for v in scalars.data[0]), SIZE
