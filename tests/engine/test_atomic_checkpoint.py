"""Whatever happens while a checkpoint is written, the run can be resumed from a whole one."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get_file_backend
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

import mmextra.registry  # noqa: F401
from mmextra.engine import atomic_checkpoint
from mmextra.engine.atomic_checkpoint import AtomicCheckpointHook

TINY = {'AtomicCheckpointHook': dict(interval=1)}


class Killed(BaseException):
    """In the place of a signal that ends the process."""


def killed(*args):
    raise Killed


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 1)

    def forward(self, inputs, data_samples=None, mode='loss'):
        out = self.fc(torch.stack(inputs) if isinstance(inputs, list) else inputs)
        return dict(loss=out.square().mean()) if mode == 'loss' else [out]


class Rising(BaseMetric):
    """A score that grows with every validation, so that each is the best so far."""

    calls = 0

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        Rising.calls += 1
        return dict(score=Rising.calls)


class Watch(Hook):
    """Writes down what lies in the folder whenever a checkpoint is about to be saved."""

    def __init__(self):
        self.seen = []

    def before_save_checkpoint(self, runner, checkpoint):
        self.seen.append(sorted(p.name for p in Path(runner.work_dir).glob('*.pth')))


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return dict(inputs=torch.full((2,), float(index)), data_samples=None)


def loader():
    return dict(
        batch_size=2,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=Numbers(),
        collate_fn=dict(type='pseudo_collate'),
    )


def runner(work_dir, epochs=3, resume=False, hooks=(), **options):
    torch.manual_seed(0)
    return Runner(
        Toy(),
        str(work_dir),
        train_dataloader=loader(),
        val_dataloader=loader(),
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=1),
        val_cfg=dict(),
        val_evaluator=[Rising(prefix='toy')],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        default_hooks=dict(
            checkpoint=dict(
                type='mmextra.AtomicCheckpointHook', interval=1, max_keep_ckpts=1, **options
            )
        ),
        custom_hooks=list(hooks),
        resume=resume,
        log_level='ERROR',
        experiment_name=f'{work_dir.name}-{resume}-{len(hooks)}',
    )


def names(work_dir):
    return sorted(p.name for p in work_dir.iterdir() if p.is_file() and p.suffix != '.py')


def test_old_checkpoints_go_after_the_new_one_is_there(tmp_path):
    watch = Watch()
    runner(tmp_path, hooks=[watch]).train()
    assert watch.seen == [[], ['epoch_1.pth'], ['epoch_2.pth']]
    assert names(tmp_path) == ['epoch_3.pth', 'last_checkpoint']
    assert find_latest_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_3.pth')


def test_best_checkpoints_too(tmp_path):
    watch = Watch()
    runner(tmp_path, hooks=[watch], save_best='toy/score', rule='greater').train()
    kept = [n for n in names(tmp_path) if n.endswith('.pth')]
    assert kept == ['best_toy_score_epoch_3.pth', 'epoch_3.pth']
    # While the second best is written, the first is still there; and again when the epoch's file is written anew.
    assert ['best_toy_score_epoch_1.pth', 'epoch_2.pth'] in watch.seen
    assert all(any(n.startswith('best') for n in seen) for seen in watch.seen[2:])


@pytest.mark.parametrize('moment', ['write', 'fsync', 'replace', 'pointer', 'remove'])
def test_killed_while_saving(tmp_path, monkeypatch, moment):
    """Epoch 2 is being saved when the process dies; the run goes on, to the same end."""
    whole = tmp_path / 'whole'
    runner(whole).train()
    expected = torch.load(whole / 'epoch_3.pth', weights_only=False)['state_dict']

    folder = tmp_path / 'killed'
    target = 'last_checkpoint' if moment == 'pointer' else 'epoch_2.pth'
    write = atomic_checkpoint.write_atomically
    now = []  # for every file that is written, whether it is the one to die at

    def watched(content, path):
        now.append(str(path).endswith(target) and (folder / 'epoch_1.pth').exists())
        if now[-1] and moment == 'pointer':
            now[-1] = (folder / 'epoch_2.pth').exists()
        if now[-1] and moment == 'write':  # half of it is on the disk
            with open(f'{path}.part', 'wb') as file:
                file.write(content[: len(content) // 2])
            raise Killed
        write(content, path)

    def die(at, function):
        def call(*args):
            if now and now[-1] and moment in at:
                raise Killed
            return function(*args)

        return call

    monkeypatch.setattr(atomic_checkpoint, 'write_atomically', watched)
    for name, at in (('fsync', ('fsync',)), ('replace', ('replace', 'pointer'))):
        monkeypatch.setattr(os, name, die(at, getattr(os, name)))
    if moment == 'remove':
        monkeypatch.setattr(os, 'remove', killed)
    with pytest.raises(Killed):
        runner(folder).train()
    monkeypatch.undo()

    latest = find_latest_checkpoint(str(folder))
    assert latest == str(folder / f'epoch_{2 if moment == "remove" else 1}.pth')
    again = runner(folder, resume=True)
    again.train()
    assert again.epoch == 3
    resumed = torch.load(folder / 'epoch_3.pth', weights_only=False)['state_dict']
    assert all(torch.equal(v, resumed[k]) for k, v in expected.items())
    assert names(folder) == ['epoch_3.pth', 'last_checkpoint']


@pytest.mark.parametrize('moment', ['publishing', 'writing'])
def test_killed_after_the_last_checkpoint(tmp_path, monkeypatch, moment):
    """Nothing is left to train; the resumed run publishes what the killed one did not, and no cut file stays."""
    write = atomic_checkpoint.write_atomically

    def watched(content, path):
        if '_3-' in str(path):
            if moment == 'writing':
                Path(f'{path}.part').write_bytes(content[:100])
            raise Killed
        write(content, path)

    monkeypatch.setattr(atomic_checkpoint, 'write_atomically', watched)
    with pytest.raises(Killed):
        runner(tmp_path, published_keys=['state_dict']).train()
    monkeypatch.undo()
    assert [n for n in names(tmp_path) if not n.endswith('.part')] == [
        'epoch_3.pth',
        'last_checkpoint',
    ]
    runner(tmp_path, published_keys=['state_dict'], resume=True).train()
    file, *others = sorted(n for n in names(tmp_path) if n != 'last_checkpoint')
    assert others == ['epoch_3.pth'] and file == f'epoch_3-{digest(tmp_path / file)}.pth'
    published = torch.load(tmp_path / file, weights_only=True)
    whole = torch.load(tmp_path / 'epoch_3.pth', weights_only=False)['state_dict']
    assert published.keys() == {'state_dict'}
    assert all(torch.equal(v, published['state_dict'][k]) for k, v in whole.items())


def digest(path):
    """What OpenMMLab's file names end with."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def test_stock_hook_is_not_safe(tmp_path, monkeypatch):
    """What this hook is for: mmengine's own has removed epoch 1 before epoch 2 is written."""
    watch = Watch()
    stock = runner(tmp_path, hooks=[watch])
    stock.register_hook(dict(type='CheckpointHook', interval=1, max_keep_ckpts=1))
    stock._hooks = [h for h in stock._hooks if not isinstance(h, AtomicCheckpointHook)]
    stock.train()
    assert watch.seen == [[], [], []]


def test_backend_writes_whole_files(tmp_path):
    backend = get_file_backend(backend_args=dict(backend='atomic'))
    path = tmp_path / 'new' / 'file.txt'
    backend.put_text('first', path)
    backend.put(b'second', path)
    assert path.read_text() == 'second' and names(path.parent) == ['file.txt']
    with pytest.raises(Killed), backend.removals_last():
        backend.remove(path)
        raise Killed
    assert path.exists()
    with backend.removals_last():
        backend.remove(path)
        assert path.exists()
    assert not path.exists()


def test_other_storage_is_refused():
    with pytest.raises(ValueError, match='take mmengine'):
        AtomicCheckpointHook(backend_args=dict(backend='petrel'))
