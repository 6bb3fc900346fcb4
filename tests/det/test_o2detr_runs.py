"""Whole runs of O2DETR with the stock runner: shipped configs, resuming, two processes."""

import copy
import json
import os
import runpy
import socket
import subprocess
import sys

import pytest
import torch
from drawn_rectangles import ROOT, draw_rectangles, oriented_dataset, oriented_run
from mmengine.config import Config
from test_o2detr import config as tiny_config
from tiny_detectors import plain_config_dumps  # noqa: F401  a fixture
from training import assert_equal_weights, losses_of, train, weights

from mmextra.engine.checkpoint import read_checkpoint
from mmextra.registry import MODELS

CONFIGS = sorted((ROOT / 'configs/o2detr').glob('*.py'))


@pytest.fixture(scope='session')
def rectangles_root(tmp_path_factory):
    """A small drawn oriented set."""
    return draw_rectangles(tmp_path_factory.mktemp('rectangles') / 'rectangles')


def model_cfg(**options):
    """The small detector for the two classes of the drawn set."""
    cfg = tiny_config(**options)
    for part in ('bbox_head', 'refine_head'):
        if part in cfg:
            cfg[part]['num_classes'] = 2
    return cfg


# Shipped configs


def narrow(node):
    """The model of a config with a sixteenth of its backbone and 32 channels everywhere else."""
    if isinstance(node, (list, tuple)):
        return [narrow(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {k: narrow(v) for k, v in node.items() if k != 'init_cfg'}
    if str(node.get('type')).endswith('ResNet'):
        expansion = 1 if node['depth'] < 50 else 4
        node.update(depth=50 if expansion == 4 else 18, base_channels=4, frozen_stages=-1)
    if 'in_channels' in node:
        count = len(node['in_channels'])
        node['in_channels'] = [4 * expansion_of(node) * 2 ** (i + 4 - count) for i in range(count)]
    for key in ('embed_dims', 'out_channels', 'feedforward_channels', 'fc_channels', 'num_feats'):
        if key in node:
            node[key] = 16 if key == 'num_feats' else 32
    for key, value in (('num_layers', 2), ('num_classes', 2), ('num_queries', 12)):
        node.update({key: value} if key in node else {})
    if 'num_groups' in node:
        node['num_groups'] = 4
    if 'bbox_head' in node:  # its default, 256, does not stand in the published configs
        node['bbox_head']['embed_dims'] = 32
    return node


def expansion_of(neck):
    """Whether the neck of a config stands on a ResNet with bottlenecks."""
    return 4 if neck['in_channels'][-1] >= 512 else 1


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_shipped_config_trains_and_validates(path, rectangles_root, tmp_path):
    shipped = Config.fromfile(path)
    cfg = oriented_run(narrow(shipped.model.to_dict()), rectangles_root, tmp_path)
    cfg.optim_wrapper = shipped.optim_wrapper
    cfg.param_scheduler = shipped.param_scheduler
    cfg.val_evaluator = dict(shipped.val_evaluator, merge_patches=False)
    for split, loader, train_set in (
        ('train', 'train_dataloader', True),
        ('val', 'val_dataloader', False),
    ):
        steps = copy.deepcopy(shipped[loader].dataset.pipeline)
        for step in steps:
            if step['type'] == 'Resize':
                step['scale'] = (64, 64)
        dataset = oriented_dataset(rectangles_root, split, train_set)
        cfg[loader].dataset = dict(
            copy.deepcopy(shipped[loader].dataset),
            **{k: dataset[k] for k in ('data_root', 'ann_file', 'data_prefix', 'metainfo')},
            pipeline=steps,
        )
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
    cfg.default_hooks.checkpoint = None
    runner = train(cfg)
    assert runner.iter == 2
    assert all(torch.isfinite(torch.tensor(v)).all() for v in losses_of(runner).values())
    scalars = runner.message_hub.log_scalars
    assert 0 <= scalars['val/dota/mAP'].current() <= 1


def test_test_time_augmentation_and_pictures(rectangles_root, tmp_path, monkeypatch):
    """`tools/test.py --tta --show-dir` with what the shipped configs say of both."""
    shipped = Config.fromfile(ROOT / 'configs/o2detr/o2detr_r18_rotated-rectangles_demo.py')
    cfg = oriented_run(model_cfg(), rectangles_root, tmp_path / 'run')
    model = MODELS.build(copy.deepcopy(cfg.model))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    cfg.test_dataloader, cfg.test_evaluator, cfg.test_cfg = (
        cfg.val_dataloader,
        cfg.val_evaluator,
        {},
    )
    cfg.default_hooks.visualization = dict(type='DetVisualizationHook', interval=1, score_thr=0.0)
    cfg.visualizer, cfg.tta_model = shipped.visualizer, shipped.tta_model
    cfg.dump(tmp_path / 'config.py')
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    runpy.run_path(str(ROOT / 'tools/test.py'))['main'](
        [str(tmp_path / 'config.py'), str(tmp_path / 'model.pth'), '--tta']
        + [
            '--show-dir',
            'pictures',
            '--out',
            str(tmp_path / 'metrics.json'),
            '--out-item',
            'metrics',
        ]
    )
    assert 0 <= json.loads((tmp_path / 'metrics.json').read_text())['dota/mAP'] <= 1
    assert len([*(tmp_path / 'run').glob('**/pictures/*')]) == 4


# Interrupted runs and several processes


@pytest.mark.parametrize('refine', [False, True])
def test_a_resumed_run_equals_an_unbroken_one(refine, rectangles_root, tmp_path):
    cfg = oriented_run(model_cfg(refine=refine), rectangles_root, tmp_path / 'whole')
    cfg.model.encoder.layer_cfg.dropout = 0.1  # chance must be the same too
    whole = weights(train(cfg).model)
    cfg.resume, cfg.work_dir = True, str(tmp_path / 'resumed')
    cfg.load_from = str(tmp_path / 'whole/epoch_1.pth')
    resumed = train(cfg)
    assert resumed.iter == 4
    assert_equal_weights(weights(resumed.model), whole)


def test_fine_tuning_starts_from_a_checkpoint(rectangles_root, tmp_path):
    """What the f-o2detr configs do: a finished O2DETR, loaded into one with a cascaded head."""
    first = oriented_run(model_cfg(), rectangles_root, tmp_path / 'first')
    trained = weights(train(first).model)
    second = oriented_run(model_cfg(refine=True), rectangles_root, tmp_path / 'second')
    second.load_from = str(tmp_path / 'first/epoch_2.pth')
    second.optim_wrapper.optimizer.lr = 0.0
    second.optim_wrapper.optimizer.weight_decay = 0.0
    tuned = weights(train(second).model)
    still = {
        k for k in trained if k.endswith(('weight', 'bias')) and torch.equal(trained[k], tuned[k])
    }
    assert still == {k for k in trained if k.endswith(('weight', 'bias'))}
    assert any(k.startswith('refine_head.') for k in tuned)


def test_two_processes_equal_one(rectangles_root, tmp_path):
    def run(name, batch_size):
        cfg = oriented_run(model_cfg(refine=True), rectangles_root, tmp_path / name)
        cfg.train_dataloader.batch_size = batch_size
        steps = cfg.train_dataloader.dataset.pipeline
        cfg.train_dataloader.dataset.pipeline = [s for s in steps if s['type'] != 'RandomFlip']
        # Adam would amplify rounding, and clipping would hide a wrong scale.
        cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-4))
        return cfg

    one = train(run('one', 4))
    path = tmp_path / 'two.py'
    run('two', 2).dump(path)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2']
    command += [f'--master_port={port}', str(ROOT / 'tools/train.py'), str(path)]
    environment = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    done = subprocess.run(
        [*command, '--launcher', 'pytorch'],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = read_checkpoint(str(tmp_path / 'two' / 'epoch_2.pth'))
    assert one.iter == 4 and two['meta']['iter'] == 4
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(
            two['state_dict'][name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: n + m
        )
