"""Comparisons over seeds, with runs that are made up and one that is real."""

import json
import sys
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import METRICS, MODELS
from mmengine.runner import Runner
from torch import nn

# Accuracy of the made-up run of each config, for seed 0; every further seed has one point more.
ACCURACY = dict(plain=70.0, distilled=72.5)


def write_log(work_dir, folder='1', validations=(), seconds=(0.5,)):
    """A log as mmengine writes it."""
    path = Path(work_dir) / folder / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    lines = [dict(lr=0.1, time=t, data_time=0.1, loss=1.0, iter=i) for i, t in enumerate(seconds)]
    lines += [
        {**v, 'time': 9.0, 'data_time': 8.0, 'step': 4 * n} for n, v in enumerate(validations, 1)
    ]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


@pytest.fixture
def compare(tool, monkeypatch, tmp_path):
    """The tool, with commands recorded in ``compare.commands`` and runs made up."""
    module = tool('compare.py')
    module.commands = []

    def call(command):
        command = [str(part) for part in command]
        module.commands.append(command)
        config, work_dir = Path(command[3]), command[command.index('--work-dir') + 1]
        options = dict(p.split('=', 1) for p in command[command.index('--cfg-options') + 1 :])
        gain = int(options['randomness.seed']) + float(options.get('optimizer.lr', 0))
        value = ACCURACY.get(config.stem)
        write_log(work_dir, validations=[dict(accuracy=value + gain)] if value else [])

    monkeypatch.setattr(module, 'call', call)
    monkeypatch.chdir(tmp_path)
    return module


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['compare.py', *map(str, arguments)])
    module.main()


def test_table_and_figures(compare, monkeypatch, capsys):
    run(compare, monkeypatch, 'a/plain.py', 'a/distilled.py', '--before', 'a/teacher.py')
    runs = json.loads(Path('work_dirs/compare/runs.json').read_text())
    assert [f['accuracy'] for f in runs['plain']] == [70, 71, 72]
    assert all(f['seconds'] == 0.5 and f['minutes'] < 1 for f in runs['distilled'])
    assert not any(k in runs['plain'][0] for k in ('step', 'time', 'data_time'))
    table = Path('work_dirs/compare/table.md').read_text()
    assert table.splitlines() == [
        '| run | accuracy | train s/iter | minutes a run |',
        '| --- | --- | --- | --- |',
        '| plain | 71.0 ± 1.0 | 0.500 | 0.0 |',
        '| distilled | 73.5 ± 1.0 | 0.500 | 0.0 |',
    ]
    assert table in capsys.readouterr().out
    picture = Path('work_dirs/compare/plot.svg').read_text()
    assert all(f'>{text}</text>' in picture for text in ('accuracy', 'plain', 'distilled'))
    # The teacher first and once, where configs look for it; then seed by seed.
    folders = [c[c.index('--work-dir') + 1] for c in compare.commands]
    assert folders == ['work_dirs/teacher'] + [
        f'work_dirs/compare/{name}_seed{seed}'
        for seed in range(3)
        for name in ('plain', 'distilled')
    ]
    assert all(c[:3] == ['mim', 'train', 'mmextra'] for c in compare.commands)


def test_options_are_filled_in_for_the_runs_compared_alone(compare, monkeypatch):
    run(
        compare,
        monkeypatch,
        *('plain.py', '--before', 'teacher.py', '--seeds', 2, 5, '--out', 'out'),
        *('--cfg-options', 'load_from=pre_seed{seed}/{seed}.pth', 'optim_wrapper.optimizer.lr=0.1'),
    )
    options = [c[c.index('--cfg-options') + 1 :] for c in compare.commands]
    assert options == [
        ['randomness.seed=0'],
        ['randomness.seed=2', 'load_from=pre_seed2/2.pth', 'optim_wrapper.optimizer.lr=0.1'],
        ['randomness.seed=5', 'load_from=pre_seed5/5.pth', 'optim_wrapper.optimizer.lr=0.1'],
    ]


def test_figures_of_other_options_are_not_taken(compare, monkeypatch):
    arguments = ('plain.py', '--seeds', 0, '--cfg-options')
    run(compare, monkeypatch, *arguments, 'optimizer.lr=1')
    run(compare, monkeypatch, *arguments, 'optimizer.lr=1')
    assert len(compare.commands) == 1
    with pytest.raises(
        SystemExit, match='plain_seed0 was trained with .*lr=1, not with .*lr=2: name'
    ):
        run(compare, monkeypatch, *arguments, 'optimizer.lr=2')


def test_bars_have_the_names_given(compare, monkeypatch, capsys):
    arguments = ('plain.py', 'distilled.py', '--seeds', 0, '--out', 'out', '--names')
    run(compare, monkeypatch, *arguments, 'student alone', 'LD')
    picture = Path('out/plot.svg').read_text()
    assert '>student alone</text>' in picture and '>plain</text>' not in picture
    with pytest.raises(SystemExit):
        run(compare, monkeypatch, *arguments, 'LD')
    assert '2 are needed, one for each config' in capsys.readouterr().err


def test_metrics_of_other_epochs(compare, monkeypatch):
    run(compare, monkeypatch, 'plain.py', '--seeds', 0, 1, '--metrics', 'accuracy@4', 'accuracy')
    assert '| plain | 70.5 ± 0.7 | 70.5 ± 0.7 |' in Path('work_dirs/compare/table.md').read_text()


def test_columns_are_those_of_the_last_validation(compare, tmp_path):
    write_log(tmp_path, validations=[{'ap': 1.0, 'recall@20': 2.0}] * 2)
    figures = dict(compare.metrics(tmp_path), seconds=1.0, minutes=1.0)
    assert 'recall@20@4' in figures
    assert compare.default_columns(figures) == ['ap', 'recall@20']


def test_grid(compare, monkeypatch, capsys):
    arguments = ('plain.py', 'distilled.py', '--seeds', 0, 1, '--out', 'out', '--grid')
    columns = [f'accuracy@{value}' for value in ('2', '0.5', '1', 'lowest', 'highest')]
    run(compare, monkeypatch, *arguments, 'optimizer.lr=2,0.5,1', '--metrics', *columns)
    table = Path('out/table.md').read_text().splitlines()
    assert table[0] == (
        '| run | accuracy@2 | accuracy@0.5 | accuracy@1 | accuracy@lowest | accuracy@highest '
        '| train s/iter | minutes a run |'
    )
    assert table[2] == (
        '| plain | 72.5 ± 0.7 | 71.0 ± 0.7 | 71.5 ± 0.7 | 71.0 ± 0.7 | 72.5 ± 0.7 | 0.500 | 0.0 |'
    )
    folders = [Path(c[c.index('--work-dir') + 1]).name for c in compare.commands]
    assert len(folders) == 12 and folders[:2] == ['plain_seed0_lr-2', 'plain_seed0_lr-0.5']
    assert compare.commands[0][-2:] == ['randomness.seed=0', 'optimizer.lr=2']
    run(compare, monkeypatch, *arguments, 'optimizer.lr=2,1', '--metrics', 'accuracy@lowest')
    assert len(compare.commands) == 12
    assert '| plain | 71.5 ± 0.7 |' in Path('out/table.md').read_text()
    for grid, message in (
        ('optimizer.lr', 'must be KEY=VALUE,VALUE'),
        ('a=1', 'say with --metrics'),
    ):
        with pytest.raises(SystemExit):
            run(compare, monkeypatch, *arguments, grid)
        assert message in capsys.readouterr().err


def test_curve(compare, tmp_path):
    runs = dict(a=[dict(s_1=0.5, s_2=0.25, s=9), dict(s_1=0.7, s_2=0.35)], b=[dict(s_1=0.1)])
    compare.curve(runs, 's', ['first', 'second'], tmp_path / 'curve.svg')
    drawn = (tmp_path / 'curve.svg').read_text()
    assert all(f'>{word}</text>' in drawn for word in ('first', 'second'))
    with pytest.raises(ValueError, match='the runs have no t_1, t_2'):
        compare.curve(runs, 't', ['first', 'second'], tmp_path / 'curve.svg')


def test_finished_runs_are_not_repeated(compare, monkeypatch):
    arguments = ('plain.py', '--before', 'teacher.py', '--out', 'out', '--seeds')

    def accuracies():
        return [f['accuracy'] for f in json.loads(Path('out/runs.json').read_text())['plain']]

    run(compare, monkeypatch, *arguments, 0)
    assert len(compare.commands) == 2
    first = Path('out/runs.json').read_text()
    run(compare, monkeypatch, *arguments, 0)
    assert len(compare.commands) == 2 and Path('out/runs.json').read_text() == first
    run(compare, monkeypatch, *arguments, 0, 1)
    assert len(compare.commands) == 3
    assert accuracies() == [70, 71]
    # One that was interrupted left a log and no figures: it begins anew, and its new log counts.
    Path('out/plain_seed1/figures.json').unlink()
    Path('out/plain_seed1/1').rename('out/plain_seed1/0')
    monkeypatch.setitem(ACCURACY, 'plain', 60.0)
    run(compare, monkeypatch, *arguments, 0, 1)
    assert len(compare.commands) == 4
    assert accuracies() == [70, 61]


def test_cells(compare):
    runs = dict(
        one=[dict(ap=0.5, seconds=1.23456, minutes=2.0)],
        two=[dict(ap=0.4, seconds=1.0, minutes=3.0), dict(ap=0.6, seconds=2.0, minutes=4.0)],
        none=[dict(seconds=1.0, minutes=1.0)],
    )
    rows = compare.table(runs, ['ap'], percent=True).splitlines()[2:]
    assert rows == [
        '| one | 50.0 | 1.235 | 2.0 |',
        '| two | 50.0 ± 14.1 | 1.500 | 3.5 |',
        '| none | - | 1.000 | 1.0 |',
    ]
    assert '| one | 0.500 |' in compare.table(runs, ['ap'], percent=False)
    runs['one'][0]['ap'] = 50.0
    assert '| one | 50.0 |' in compare.table(runs, ['ap'], percent=False)
    counts = dict(none=[dict(spikes=0, seconds=1.0, minutes=1.0)])
    assert '| none | 0.0 |' in compare.table(counts, ['spikes'], percent=False)


def test_runs_without_validation(compare, monkeypatch, capsys):
    run(compare, monkeypatch, 'teacher.py', '--seeds', 0)
    assert '| run | train s/iter | minutes a run |' in capsys.readouterr().out


def test_the_last_validation_and_the_median_time_count(compare, tmp_path):
    write_log(tmp_path, validations=[dict(ap=1.0), dict(ap=2.0)], seconds=(9.0, 0.1, 0.2))
    assert compare.metrics(tmp_path) == {'ap': 2.0, 'ap@4': 1.0, 'ap@8': 2.0}
    assert compare.seconds_per_iteration(tmp_path) == 0.2


def test_a_failing_command_stops_with_what_it_said(tool):
    compare = tool('compare.py')
    with pytest.raises(SystemExit, match='(?s)no such config.*failed: '):
        compare.call([sys.executable, '-c', 'import sys; sys.exit("no such config")'])
    compare.call([sys.executable, '-c', 'import os; os.environ["PYTHONWARNINGS"]'])


@MODELS.register_module(force=True)
class Halver(BaseModel):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, inputs, mode='tensor'):
        inputs = torch.stack(inputs)
        out = self.factor * inputs
        return dict(loss=(out - inputs / 2).square().mean()) if mode == 'loss' else [out]


@METRICS.register_module(force=True)
class Count(BaseMetric):
    default_prefix = 'number'

    def process(self, data_batch, data_samples):
        self.results.append(len(data_samples))

    def compute_metrics(self, results):
        return dict(batches=float(sum(results)))


def test_logs_of_the_stock_runner(tool, tmp_path):
    """What mmengine writes is what the tool reads."""
    compare = tool('compare.py')
    loader = dict(
        dataset=[dict(inputs=torch.tensor(float(i))) for i in range(4)],
        sampler=dict(type='DefaultSampler', shuffle=False),
        batch_size=2,
        num_workers=0,
    )
    Runner(
        Halver(),
        str(tmp_path),
        train_dataloader=loader,
        val_dataloader=dict(loader),
        train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1),
        val_cfg=dict(),
        val_evaluator=dict(type='Count'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1), checkpoint=None),
        log_level='ERROR',
        experiment_name='compare',
    ).train()
    name = 'number/batches'
    assert compare.metrics(tmp_path) == {name: 2.0, f'{name}@1': 2.0, f'{name}@2': 2.0}
    assert 0 < compare.seconds_per_iteration(tmp_path) < 60
