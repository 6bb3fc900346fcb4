"""Every shipped config builds, and trains two iterations when shrunk."""

import copy
from functools import cache

import pytest
import torch
from config_models import model_of, weightless, without_files
from drawn_rectangles import draw_rectangles, oriented_dataset
from mmengine.config import Config
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


def with_classes(node, count):
    """The config for another number of classes, or for the drawn ones as its only label space."""
    if isinstance(node, dict):
        drawn = dict(num_classes=count, label_spaces=dict(drawn=DRAWN), test_label_space=None)
        return {k: drawn[k] if k in drawn else with_classes(v, count) for k, v in node.items()}
    return [with_classes(v, count) for v in node] if isinstance(node, (list, tuple)) else node


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
    # What is not trained is frozen: several processes need not look for it in every iteration.
    for part in (cfg, cfg.get('model_wrapper_cfg') or {}):
        assert not part.get('find_unused_parameters')


@pytest.mark.parametrize('name', CONFIGS)
def test_names_no_weights_that_the_model_does_not_load(name):
    """A host's config names its weights in a variable, which stays behind when the backbone is replaced."""
    cfg = load(name)
    model = str(cfg.model)
    for key, value in cfg.items():
        if key != 'load_from' and isinstance(value, str) and value.endswith('.pth'):
            assert value in model, key


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
