"""The golden files themselves: claimed by a test, and reported when they are not."""

import ast
import fnmatch
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def claims():
    """(paper, pattern) of every `@pytest.mark.golden(...)` in the tests."""
    for path in HERE.rglob('test_*.py'):
        for node in ast.walk(ast.parse(path.read_text('utf-8'))):
            if isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'golden':
                arguments = [ast.literal_eval(a) for a in node.args]
                yield from ((arguments[0], pattern) for pattern in arguments[1:])


def test_every_golden_file_is_claimed():
    known = list(claims())
    files = sorted((HERE / 'golden').glob('*/*.npz'))
    assert files
    unclaimed = [
        f'{p.parent.name}/{p.stem}'
        for p in files
        if not any(
            p.parent.name == paper and fnmatch.fnmatch(p.stem, pattern) for paper, pattern in known
        )
    ]
    assert not unclaimed


def test_files_that_no_test_claims_are_reported(tmp_path):
    (tmp_path / 'ld').mkdir()
    np.savez(tmp_path / 'ld' / 'ld_unheard_of.npz', meta='{}')
    (tmp_path / 'other_paper').mkdir()
    np.savez(tmp_path / 'other_paper' / 'x.npz', meta='{}')
    command = [sys.executable, '-m', 'pytest', '-q', '-m', 'golden', '--golden-dir', str(tmp_path)]
    command += [str(HERE / 'distill' / 'test_ld.py')]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    assert 'golden files that no test claims' in done.stdout, done.stdout[-2000:]
    assert 'ld_unheard_of.npz' in done.stdout and 'other_paper' in done.stdout
