"""Two processes learn what one learns from the same batch."""

import importlib
import os
import socket
import subprocess
import sys

import torch
from training import ROOT, detection_run, small_gfl, train

from mmextra.engine.checkpoint import read_checkpoint

# Run beside the stock script: the least method with adapters, so that their synchronisation shows.
HOOK = """
from torch import nn
from mmextra.distill.base import DistillHook
from mmextra.registry import HOOKS

@HOOKS.register_module()
class AdaptedNeckHook(DistillHook):
    student_records = ('neck',)

    def build_adapters(self, student, teacher):
        return nn.ModuleList([nn.Conv2d(32, 32, 1) for _ in range(3)])

    def losses(self, student, teacher, inputs, data_samples):
        pairs = zip(self.adapters, student['neck'], teacher.features)
        return dict(loss_neck=[(a(s) - t).square().mean() for a, s, t in pairs])
"""


def config(root, work_dir, batch_size):
    """LD and adapters; nothing random, batch statistics frozen, terms that do not depend on the batch."""
    model = small_gfl()
    model['backbone'].update(norm_eval=True)
    # Stock GFL divides by max(1, sum of confidences): start confident, so that the bound never acts.
    sure = dict(type='Normal', name='gfl_cls', std=0.01, bias_prob=0.5)
    model['bbox_head']['init_cfg'] = dict(type='Normal', layer='Conv2d', std=0.01, override=sure)
    teacher = dict(config=dict(model=small_gfl(), default_scope='mmdet'))
    hooks = [
        dict(
            type='mmextra.LocalizationDistillationHook',
            teacher=teacher,
            normalize='num_imgs',
            kd=None,
        ),
        dict(type='mmextra.AdaptedNeckHook', teacher=teacher),
    ]
    cfg = detection_run(model, root, work_dir, hooks)
    cfg.train_dataloader.batch_size = batch_size
    cfg.train_dataloader.dataset.pipeline = [
        step for step in cfg.train_dataloader.dataset.pipeline if step['type'] != 'RandomFlip'
    ]
    cfg.custom_imports = dict(imports=['adapted_neck_hook'], allow_failed_imports=False)
    return cfg


def test_two_processes_equal_one(shapes_root, tmp_path, monkeypatch):
    (tmp_path / 'adapted_neck_hook.py').write_text(HOOK)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module('adapted_neck_hook')
    one = train(config(shapes_root, tmp_path / 'one', 4))
    path = tmp_path / 'two.py'
    config(shapes_root, tmp_path / 'two', 2).dump(path)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--nproc_per_node=2',
        f'--master_port={port}',
    ]
    command += [str(ROOT / 'tools/train.py'), str(path), '--launcher', 'pytorch']
    environment = dict(
        os.environ, PYTHONPATH=str(tmp_path), OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES=''
    )
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    two = read_checkpoint(str(tmp_path / 'two' / 'epoch_2.pth'))
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(
            two['state_dict'][name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: n + m
        )
    hook = next(h for h in one.hooks if type(h).__name__ == 'AdaptedNeckHook')
    for name, value in hook.adapters.state_dict().items():
        other = two['mmextra_adapters']['AdaptedNeckHook'][name]
        torch.testing.assert_close(other, value, rtol=1e-4, atol=1e-5)
    assert one.iter == 4 and two['meta']['iter'] == 4
