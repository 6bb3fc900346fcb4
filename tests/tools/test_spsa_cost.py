"""The curves of SPSA's cost: what is written, and where they cross."""

import pytest


def test_what_is_written(tool, tmp_path, capsys):
    module = tool('spsa_cost.py')
    module.main(['--sides', '4', '2', '--seconds', '0', '--out', str(tmp_path)])
    text = (tmp_path / 'table.md').read_text()
    assert text == capsys.readouterr().out
    rows = [line.split(' | ') for line in text.splitlines()[2:4]]
    assert [row[0] for row in rows] == ['| 2x2', '| 4x4']  # the smaller one first
    for _, ours, other, ratio in rows:
        assert float(ours) > 0
        assert float(ratio.strip(' |')) == pytest.approx(float(other) / float(ours), rel=0.02)
    drawn = (tmp_path / 'plot.svg').read_text()
    assert all(f'>{word}</text>' in drawn for word in ('SPSA', 'attention', 'positions'))


@pytest.mark.parametrize(
    'ours, other, expected',
    [
        ([3, 4, 5], [2, 8, 32], 'SPSA is faster from 8x8 on'),
        ([1, 9, 5], [2, 8, 32], 'SPSA is faster from 16x16 on'),
        ([1, 2, 3], [2, 8, 32], 'SPSA is faster from 4x4 on'),
        ([3, 4, 50], [2, 8, 32], 'no cross-over'),
    ],
)
def test_crossover(tool, ours, other, expected):
    times = {'SPSA': ours, 'attention': other}
    assert tool('spsa_cost.py').crossover(times, [4, 8, 16]) == expected
