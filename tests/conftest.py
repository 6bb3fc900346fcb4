"""Fixtures and options that all tests share."""

import functools
import os
import sys
from collections import defaultdict
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
# Before torch is imported anywhere: tests run side by side, and bit-for-bit comparisons want one
# thread.
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('HF_HUB_OFFLINE', '1')

DATA = Path(os.environ.get('MMEXTRA_DATA', HERE.parents[1] / 'shared' / 'data'))


from mmengine.config import utils as config_utils  # noqa: E402

# mmengine reads all metafiles of a host anew for every base config.
config_utils.load = functools.cache(config_utils.load)


def pytest_addoption(parser):
    parser.addoption(
        '--golden-dir',
        type=Path,
        default=HERE / 'golden',
        help='folder of golden files: PAPER/CASE.npz',
    )


def pytest_generate_tests(metafunc):
    """Run a test that claims golden files once for each of them."""
    marks = list(metafunc.definition.iter_markers('golden'))
    if 'case' not in metafunc.fixturenames or not marks:
        return
    root = metafunc.config.getoption('--golden-dir')
    claims = metafunc.config.stash.setdefault(CLAIMS, set())
    paths = sorted(
        {
            p
            for mark in marks
            for pattern in mark.args[1:]
            for p in root.glob(f'{mark.args[0]}/{pattern}.npz')
        }
    )
    claims.update(paths)
    metafunc.config.stash.setdefault(CLAIMED_PAPERS, set()).update(mark.args[0] for mark in marks)
    metafunc.parametrize('case', paths, ids=lambda p: f'{p.parent.name}/{p.stem}', indirect=True)


CLAIMS = pytest.StashKey()
CLAIMED_PAPERS = pytest.StashKey()


@pytest.fixture
def case(request):
    """The golden file that this run of the test is about."""
    from golden_case import GoldenCase

    return GoldenCase(request.param)


@pytest.fixture(autouse=True)
def fresh_process():
    """Start every test as a process of its own would start, and leave nothing to the next."""
    import torch
    from training import forget_instances

    forget_instances()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    forget_instances()


@pytest.fixture(scope='session')
def data_root():
    """The folder of small real data sets; tests that need it skip where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f'needs the real data sets: set MMEXTRA_DATA ({DATA} is absent)')
    return DATA


@pytest.fixture(scope='session')
def shapes_root(tmp_path_factory):
    """A small drawn detection set, as `tools/prepare_data.py shapes` writes it."""
    from training import draw_shapes

    return draw_shapes(tmp_path_factory.mktemp('shapes') / 'shapes')


def unclaimed_golden_files(config):
    """Golden files of tested papers, or any in our own folder, that no collected test reads."""
    root = config.getoption('--golden-dir')
    papers = config.stash.get(CLAIMED_PAPERS, set())
    every = {p for p in root.glob('*/*.npz') if p.parent.name in papers or root == HERE / 'golden'}
    return sorted(every - config.stash.get(CLAIMS, set()))


def pytest_runtest_logreport(report):
    _SECONDS[report.nodeid.partition('::')[0]] += report.duration


_SECONDS = defaultdict(float)


def pytest_terminal_summary(terminalreporter, config):
    if terminalreporter.config.getoption('collectonly'):
        return
    terminalreporter.section('seconds by file')
    for name, seconds in sorted(_SECONDS.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f'{seconds:8.1f}  {name}')
    if (
        CLAIMED_PAPERS not in config.stash
    ):  # nothing was collected here: workers of pytest-xdist did
        return
    unclaimed = unclaimed_golden_files(config)
    root = config.getoption('--golden-dir')
    papers = {p.parent.name for p in root.glob('*/*.npz')} - config.stash.get(CLAIMED_PAPERS, set())
    if unclaimed and (config.option.markexpr == 'golden' or root != HERE / 'golden'):
        terminalreporter.section('golden files that no test claims')
        for path in unclaimed:
            terminalreporter.write_line(str(path))
    if papers and config.option.markexpr == 'golden':
        terminalreporter.write_line(
            f'papers with golden files but no golden test: {", ".join(sorted(papers))}'
        )
