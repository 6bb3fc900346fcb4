"""The stress script itself; `python tools/stress/resume.py` runs all of it, for minutes."""

import subprocess
import sys

import pytest
from training import ROOT


@pytest.mark.slow
def test_a_run_that_is_killed_twice():
    command = [sys.executable, '-W', 'ignore', ROOT / 'tools/stress/resume.py']
    command += ['--case', 'backbone_ema', '--kills', 2]
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *told, headings, _, row = done.stdout.splitlines()
    headings, row = (line.strip('| ').split(' | ') for line in (headings, row))
    cells = dict(zip(headings, row))
    assert cells['case'] == 'backbone_ema' and cells['bit-identical'] == 'yes'
    assert (cells['step'], cells['checkpoint'], cells['evaluation']) == ('1', '1', '0')
    for name in ('lost runs', 'corrupt `last_checkpoint`', 'files left over'):
        assert cells[name] == '0'
    assert sum(' killed, ' in line for line in told) == 2 and '0 differences' in told[-1]
