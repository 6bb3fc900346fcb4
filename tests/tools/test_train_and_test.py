import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from training import forget_instances

from mmextra.engine.checkpoint import read_checkpoint, state_dict_of

ROOT = Path(__file__).parents[2]

# A linear model on eight numbers, for mmengine alone: no host, no images.
LINE = """
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS


@MODELS.register_module(force=True)
class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)

    def init_weights(self):
        torch.nn.init.constant_(self.linear.weight, 0.5)
        torch.nn.init.zeros_(self.linear.bias)

    def forward(self, x, y, mode):
        error = self.linear(x) - y
        return dict(loss=error.square().mean()) if mode == 'loss' else [dict(error=error)]


@DATASETS.register_module(force=True)
class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        x = torch.tensor([i / 8.0])
        return dict(x=x, y=3 * x - 1)


@METRICS.register_module(force=True)
class MeanError(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [float(e.abs()) for s in data_samples for e in s['error']]

    def compute_metrics(self, results):
        return dict(error=sum(results) / len(results), count=len(results))
"""
LINE_CONFIG = """
custom_imports = dict(imports=['line'])
model = dict(type='Line')
train_dataloader = dict(
    batch_size=4, num_workers=0, dataset=dict(type='Numbers'),
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_dataloader = test_dataloader = train_dataloader
val_evaluator = test_evaluator = dict(type='MeanError')
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=2)
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9))
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(logger=dict(type='LoggerHook', interval=1),
                     checkpoint=dict(type='CheckpointHook', interval=1))
randomness = dict(seed=0)
"""


@pytest.fixture
def line(tmp_path, monkeypatch):
    (tmp_path / 'line.py').write_text(LINE)
    (tmp_path / 'config.py').write_text(LINE_CONFIG)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    return 'config.py'


@pytest.fixture
def train(tool):
    return lambda *args: run(tool('train.py'), args)


@pytest.fixture
def test(tool):
    return lambda *args: run(tool('test.py'), args)


def run(script, args):
    """Run a script as if in a process of its own: mmengine keeps visualizers by name."""
    forget_instances()
    script.main([str(a) for a in args])


def weights(path):
    return state_dict_of(read_checkpoint(str(path)))


def merged(tool, *args):
    """The config as training would see it."""
    module = tool('train.py')
    args = module.parse_args(list(args))
    return module.merge_args(module.load_config(args), args)


# One process


def test_train_resume_and_test(train, test, line, tmp_path):
    train(line)  # without --work-dir: work_dirs/CONFIG
    unbroken = weights('work_dirs/config/epoch_2.pth')
    Path('work_dirs/config/epoch_2.pth').unlink()
    Path('work_dirs/config/last_checkpoint').write_text('work_dirs/config/epoch_1.pth')
    train(line, '--resume')
    assert all(
        torch.equal(v, unbroken[k]) for k, v in weights('work_dirs/config/epoch_2.pth').items()
    )
    train(line, '--resume', 'work_dirs/config/epoch_1.pth', '--work-dir', 'other')
    assert all(torch.equal(v, unbroken[k]) for k, v in weights('other/epoch_2.pth').items())

    checkpoint = 'other/epoch_2.pth'
    test(
        line, checkpoint, '--work-dir', 'tested', '--out', 'metrics/m.json', '--out-item', 'metrics'
    )
    metrics = mmengine.load('metrics/m.json')
    assert metrics['count'] == 8 and metrics['error'] > 0
    test(line, checkpoint, '--work-dir', 'tested', '--out', 'predictions.pkl')
    predictions = pickle.loads(Path('predictions.pkl').read_bytes())
    errors = torch.cat([p['error'].flatten() for p in predictions])
    assert errors.abs().mean() == pytest.approx(metrics['error'])


def test_resuming_before_the_first_checkpoint_starts_as_the_config_says(tool, line, tmp_path):
    options = ['--resume', '--cfg-options', 'load_from=pretrained.pth', 'work_dir=run']
    cfg = merged(tool, line, *options)
    assert not cfg.resume and cfg.load_from == 'pretrained.pth'
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/last_checkpoint').write_text('run/epoch_1.pth')
    cfg = merged(tool, line, *options)
    assert cfg.resume and cfg.load_from is None
    cfg = merged(tool, line, '--resume', 'other.pth', *options[1:])
    assert cfg.resume and cfg.load_from == 'other.pth'


def test_options_of_training(tool, line):
    cfg = merged(tool, line, '--amp', '--auto-scale-lr', '--no-validate', '--no-persistent-workers')
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper' and cfg.optim_wrapper.loss_scale == 'dynamic'
    assert cfg.auto_scale_lr.enable and cfg.work_dir == 'work_dirs/config'
    assert cfg.val_cfg is None and cfg.val_dataloader is None and cfg.val_evaluator is None
    assert cfg.train_dataloader.persistent_workers is False
    assert not cfg.get('resume') and cfg.launcher == 'none'
    cfg = merged(
        tool, line, '--no-pin-memory', '--cfg-options', 'model.type=Other', 'work_dir=mine'
    )
    assert cfg.test_dataloader.pin_memory is False
    assert cfg.model.type == 'Other' and cfg.work_dir == 'mine'
    assert 'type' not in cfg.optim_wrapper and 'persistent_workers' not in cfg.test_dataloader


@pytest.mark.parametrize('flag', ['--local_rank', '--local-rank'])
def test_rank_from_torch_distributed_launch(tool, line, monkeypatch, flag):
    monkeypatch.setenv('LOCAL_RANK', 'x')
    monkeypatch.delenv('LOCAL_RANK')
    merged(tool, line, f'{flag}=3')
    assert os.environ['LOCAL_RANK'] == '3'


@pytest.mark.parametrize(
    'options, message',
    [
        (['--amp', '--cfg-options', 'optim_wrapper.type=Mine'], 'replaces an OptimWrapper'),
        (['--auto-scale-lr', '--cfg-options', 'auto_scale_lr={}'], 'needs auto_scale_lr'),
    ],
)
def test_options_that_do_not_fit_the_config(tool, line, options, message):
    with pytest.raises(ValueError, match=message):
        merged(tool, line, *options)


@pytest.mark.parametrize(
    'options, message',
    [
        (['--tta'], 'needs tta_model and tta_pipeline'),
        (['--show-dir', 'images'], 'need a `visualization` entry'),
        (['--out', 'folder'], 'a file that ends in .pkl'),
    ],
)
def test_options_of_testing_that_do_not_fit(test, line, options, message):
    with pytest.raises(ValueError, match=message):
        test(line, 'checkpoint.pth', *options)


def test_a_runner_of_ones_own(tool, line, monkeypatch):
    from mmengine.registry import RUNNERS

    class Mine:
        @classmethod
        def from_cfg(cls, cfg):
            return cls, cfg.model.type

    monkeypatch.setitem(RUNNERS._module_dict, 'Mine', Mine)
    build_runner = tool('train.py').build_runner
    assert build_runner(Config(dict(runner_type='Mine', model=dict(type='M')))) == (Mine, 'M')


# The hosts, on the data sets of configs/_base_


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


@pytest.fixture
def data(tool, tmp_path, monkeypatch):
    """Two or three small images of each of the data sets."""
    root, random = tmp_path / 'data', np.random.RandomState(0)
    monkeypatch.setenv('MMEXTRA_DATA', str(root))
    monkeypatch.chdir(tmp_path)
    tool('prepare_data.py').main(['shapes', '--train', '2', '--val', '2', '--size', '64x64'])
    for split in ('train', 'val', 'test'):
        noise = random.randint(0, 255, (48, 64, 3))
        write(root / 'camvid' / 'img_dir' / split / 'a.jpg', noise)
        write(root / 'camvid' / 'ann_dir' / split / 'a.png', random.randint(0, 11, (48, 64)))
        for name in ('cat', 'dog'):
            write(root / 'cifar10' / split / name / '0000.jpg', noise[:32, :32])
    return root


DETECTION = """
_base_ = ['{root}/_base_/models/gfl_small.py', '{root}/_base_/datasets/shapes_detection.py',
          '{root}/_base_/schedules/small_detection.py', 'mmdet::_base_/default_runtime.py']
model = dict(backbone=dict(base_channels=4), neck=dict(in_channels=[8, 16, 32], out_channels=32),
             bbox_head=dict(in_channels=32, feat_channels=32), test_cfg=dict(score_thr=0.0))
train_cfg = dict(max_epochs=1, val_interval=1)
"""
SEGMENTATION = """
_base_ = ['{root}/_base_/datasets/camvid.py', 'mmseg::_base_/default_runtime.py']
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 32), seg_pad_val=255),
    backbone=dict(type='ResNet', depth=18, base_channels=4, num_stages=1, strides=(1,),
                  dilations=(1,), out_indices=(0,), norm_cfg=dict(type='BN')),
    decode_head=dict(type='FCNHead', in_channels=4, channels=4, in_index=0, num_convs=1,
                     concat_input=False, num_classes=11, norm_cfg=dict(type='BN'),
                     align_corners=False),
    test_cfg=dict(mode='whole'))
crop_size = (32, 32)
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
    dict(type='RandomCrop', crop_size=crop_size), dict(type='PackSegInputs')]))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=1, val_interval=1)
val_cfg = test_cfg = dict()
tta_model = dict(type='SegTTAModel')
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1),
                     visualization=dict(type='SegVisualizationHook'))
"""
CLASSIFICATION = """
_base_ = ['{root}/_base_/datasets/cifar10.py', 'mmpretrain::_base_/default_runtime.py']
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4,
                  out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=32,
              loss=dict(type='CrossEntropyLoss')))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
train_dataloader = dict(batch_size=2)
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = test_cfg = dict()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    'config, checkpoint, metric, images',
    [
        (DETECTION, 'epoch_1.pth', 'coco/bbox_mAP', 'work/*/images/*.jpg'),
        (SEGMENTATION, 'iter_1.pth', 'mIoU', 'images/vis_data/vis_image/*.png'),
        (CLASSIFICATION, 'epoch_1.pth', 'accuracy/top1', 'images/*.png'),
    ],
    ids=['mmdet', 'mmseg', 'mmpretrain'],
)
def test_every_host(train, test, data, tmp_path, config, checkpoint, metric, images):
    Path('config.py').write_text(config.format(root=ROOT / 'configs'))
    workers = [f'{s}_dataloader.num_workers=0' for s in ('train', 'val', 'test')]
    common = ['--work-dir', tmp_path / 'work', '--cfg-options', *workers]
    train('config.py', *common)
    common = [tmp_path / 'work' / checkpoint, *common]
    out = ['--out', 'metrics.json', '--out-item', 'metrics']
    test('config.py', '--show-dir', 'images', '--interval', 1, *out, *common)
    assert metric in mmengine.load('metrics.json')
    assert list(tmp_path.glob(images)), [str(p) for p in tmp_path.rglob('*.[jp][pn]g')]
    test('config.py', '--tta', '--out', 'predictions.pkl', *common)
    assert pickle.loads(Path('predictions.pkl').read_bytes())
    if config is SEGMENTATION:
        test('config.py', '--out', 'masks', *common)
        assert list(Path('masks').glob('*.png'))
        Path('config.py').write_text(
            config.format(root=ROOT / 'configs') + "test_evaluator = [dict(type='IoUMetric')]\n"
        )
        test('config.py', '--out', 'masks_of_one_in_a_list', *common)
        assert list(Path('masks_of_one_in_a_list').glob('*.png'))


# Several processes


def shell(name, *args):
    """Run one of the shell scripts with this Python; return what it printed."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    environment = dict(
        os.environ,
        PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
        PYTHONPATH='.',
        PORT=str(port),
        CUDA_VISIBLE_DEVICES='-1',
        OMP_NUM_THREADS='1',
    )
    environment.pop('MASTER_ADDR', None)
    command = [str(ROOT / 'tools' / name), *(str(a) for a in args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_two_processes_equal_one(train, line):
    train(line, '--work-dir', 'one')
    # Two processes take turns in the data set, so that together they see the same batches.
    shell(
        'dist_train.sh',
        line,
        2,
        '--work-dir',
        'two',
        '--cfg-options',
        'train_dataloader.batch_size=2',
    )
    one, two = weights('one/epoch_2.pth'), weights('two/epoch_2.pth')
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value)
    # Validation put the parts of the two processes together.
    (log,) = Path('two').glob('*/vis_data/scalars.json')
    assert json.loads(log.read_text().splitlines()[-1])['count'] == 8


@pytest.fixture
def echo(tmp_path, monkeypatch):
    """Stand-ins for `srun` and `python` that print their arguments, one a line."""
    for name in ('srun', 'python'):
        path = tmp_path / 'bin' / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        path.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:{os.environ["PATH"]}')


def test_dist_scripts_pass_everything_on(line, echo, monkeypatch):
    for name, value in dict(NNODES=2, NODE_RANK=1, MASTER_ADDR='10.0.0.7', PORT=4711).items():
        monkeypatch.setenv(name, str(value))
    for task, given in (('train', [line, '4']), ('test', [line, 'c.pth', '4'])):
        command = [str(ROOT / 'tools' / f'dist_{task}.sh'), *given, '--cfg-options', 'a="[1, 2]"']
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        words = done.stdout.splitlines()
        assert words[:2] == ['-m', 'torch.distributed.run'] and '--nproc_per_node=4' in words
        assert {'--nnodes=2', '--node_rank=1', '--master_addr=10.0.0.7', '--master_port=4711'} < {
            *words
        }
        assert words[words.index('--launcher') :] == [
            '--launcher',
            'pytorch',
            '--cfg-options',
            'a="[1, 2]"',
        ]
        script, *rest = words[words.index('--nproc_per_node=4') + 1 : words.index('--launcher')]
        assert script.endswith(f'tools/{task}.py') and rest == given[:-1]


def test_slurm_scripts_pass_everything_on(line, echo, monkeypatch):
    for name, value in dict(GPUS=4, GPUS_PER_NODE=2, SRUN_ARGS='--quiet --exclusive').items():
        monkeypatch.setenv(name, str(value))
    for task, last in (('train', '--work-dir=w'), ('test', 'w')):
        command = [str(ROOT / 'tools' / f'slurm_{task}.sh'), 'gpu', 'job', line, 'w']
        command += ['--cfg-options', 'a="[1, 2]"']
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        words = done.stdout.splitlines()
        assert words[:5] == ['-p', 'gpu', '--job-name=job', '--gres=gpu:2', '--ntasks=4']
        assert '--quiet' in words and '--exclusive' in words
        assert words[-5:] == [line, last, '--launcher=slurm', '--cfg-options', 'a="[1, 2]"']
        assert words[-6].endswith(f'tools/{task}.py')
