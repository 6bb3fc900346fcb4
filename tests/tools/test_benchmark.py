import re

import pytest
import torch

GOOD = """
import torch
from benchmark_case import Case
from torch import nn


class Nested(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.calls = []

    def forward(self, x, scale):
        self.calls.append((self.training, torch.is_grad_enabled()))
        y = self.linear(x) * scale
        return dict(out=[y, (y.detach(), None)], count=3)


BUILT = []


def build(width, device):
    BUILT.append(Nested(width).to(device))
    return BUILT[-1], (torch.ones(256, width, device=device), 2.0)


def cases(device):
    return [
        Case('small', lambda: build(8, device), lambda: build(16, device), 'torch linear',
             reference=lambda: build(32, device), reference_name='wide'),
        Case('forward alone', lambda: build(8, device), lambda: build(8, device), 'itself',
             backward=False),
    ]
"""
BAD = """
def cases(device):
    raise RuntimeError('no such host here')
"""
EMPTY = 'def case():\n    pass\n'


@pytest.fixture
def bench(tool, tmp_path, monkeypatch):
    """The runner over a folder of made-up papers."""
    folder = tmp_path / 'benchmark'
    folder.mkdir()
    (folder / 'good.py').write_text(GOOD)
    (folder / 'helper.py').write_text(EMPTY)
    module = tool('benchmark/run.py')
    monkeypatch.setattr(module, 'RUN_SECONDS', 1e-4)
    out = tmp_path / 'docs' / 'benchmarks.md'

    def run(*args):
        return module.main([*args, '--runs', '2', '--out', str(out)], folder=folder)

    run.module, run.folder, run.out = module, folder, out
    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


def test_the_page(bench):
    assert bench('--threads', '2') == 0
    page = bench.out.read_text()
    assert page.startswith('# Benchmarks\n') and re.findall(r'^## (.*)', page, re.MULTILINE) == [
        'good'
    ]
    assert re.search(r'\d+ cores; 2 threads, 2 runs\. Python 3\.\d+\.\d+, torch \d', page)
    assert 'mmengine 0.' in page
    number = r'[\d.]+ \([\d.]+-[\d.]+\)'
    assert re.search(
        rf'^\| small \| ours \| 0\.00 M \| {number} \| {number} \| [\d.]+ \| [\d.]+ \|$', page, re.M
    )
    assert re.search(rf'^\|  \| torch linear \| 0\.00 M \| {number} ', page, re.M)
    assert re.search(rf'^\|  \| wide \| 0\.00 M \| {number} ', page, re.M)
    assert re.search(
        rf'^\| forward alone \| ours \| 0\.00 M \| {number} \|  \| [\d.]+ \|  \|$', page, re.M
    )


def test_papers_that_are_not_named_keep_their_sections(bench):
    bench()
    page = bench.out.read_text().replace('torch linear', 'what stood there')
    bench.out.write_text(page)
    (bench.folder / 'fast.py').write_text(GOOD)
    assert bench('--paper', 'fast') == 0
    page = bench.out.read_text()
    assert re.findall(r'^## (.*)', page, re.MULTILINE) == ['fast', 'good']
    assert page.count('what stood there') == page.count('torch linear') == 1
    assert page.count('# Benchmarks') == 1


def test_one_paper_in_trouble_costs_the_others_nothing(bench, capsys):
    (bench.folder / 'bad.py').write_text(BAD)
    assert bench() == 1
    assert 'no such host here' in (said := capsys.readouterr().err) and 'not measured: bad' in said
    assert re.findall(r'^## (.*)', bench.out.read_text(), re.MULTILINE) == ['good']


def test_an_unknown_paper(bench, capsys):
    with pytest.raises(SystemExit):
        bench('--paper', 'volvo')
    assert 'no benchmark of volvo; there are: good' in capsys.readouterr().err


def test_how_each_candidate_is_called(bench):
    case = bench.module.load_cases(bench.folder / 'good.py', torch.device('cpu'))[0]
    rows = bench.module.measure(case, torch.device('cpu'), runs=3)
    assert [row.label for row in rows] == ['ours', 'torch linear', 'wide']
    assert [row.parameters for row in rows] == [8 * 9, 16 * 17, 32 * 33]
    assert all(len(row.forward) == len(row.step) == 3 for row in rows)
    assert all(t > 0 for row in rows for t in row.forward + row.step)
    for module in case.ours.__globals__['BUILT']:
        forward, step = (False, False), (True, True)
        assert set(module.calls) == {forward, step}
        # All forward calls come before all steps.
        assert module.calls == sorted(module.calls)
        assert module.linear.weight.grad is not None


def test_memory_at_the_peak(bench):
    """Two tensors of a MiB alive at once, beside two that are gone or were there before."""

    def work():
        a = torch.ones(2**18)
        b = a + 1
        del a
        return (b * before).sum()

    before = torch.ones(2**18)
    assert bench.module.cpu_peak(work) == pytest.approx(2 * 2**20, rel=0.01)


def test_numbers_in_the_table(bench):
    spread, amount = bench.module.spread, bench.module.amount
    assert spread([1234.4, 1111.1, 2222.2]) == '1234 (1111-2222)'
    assert spread([12.34, 11.0]) == '11.7 (11.0-12.3)'
    assert spread([0.01234]) == '0.0123 (0.0123-0.0123)'
    assert spread([]) == '' and amount(float('nan')) == ''
    assert amount(3.14) == '3.1' and amount(314.15) == '314'


def test_a_file_without_cases(bench):
    with pytest.raises(ValueError, match=r'helper.py has no function `cases'):
        bench.module.load_cases(bench.folder / 'helper.py', torch.device('cpu'))
