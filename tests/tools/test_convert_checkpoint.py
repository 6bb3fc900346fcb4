import pytest
import torch

from mmextra.engine.checkpoint import _LAYOUTS, register_layout


class Custom:
    """A class that no checkpoint may hold."""


@pytest.fixture
def layout(monkeypatch):
    """The layout of a made-up paper: one key renamed, one kept, one split in two, one left out."""
    monkeypatch.setitem(_LAYOUTS, 'made_up', None)

    @register_layout('made_up')
    def official(state):
        key, value = state['attn.kv'].chunk(2)
        return {
            'backbone.weight': state['weight'],
            'head.fc.bias': state['head.fc.bias'],
            'backbone.key': key,
            'backbone.value': value,
        }


@pytest.fixture
def weights():
    return {
        'weight': torch.randn(3, 2),
        'head.fc.bias': torch.randn(4),
        'attn.kv': torch.randn(6, 2),
        'queue': torch.randn(5),
    }


@pytest.fixture
def official(tmp_path, weights):
    path = tmp_path / 'official.pth'
    torch.save(
        dict(model=weights, epoch=300, ema=dict(weights, weight=weights['weight'] + 1)), path
    )
    return path


def run(tool, *args):
    return tool('convert_checkpoint.py').main([str(a) for a in args])


def test_writes_an_mm_checkpoint_that_loads_safely(
    tool, layout, official, weights, tmp_path, capsys
):
    target = tmp_path / 'new' / 'mm.pth'
    assert run(tool, 'made_up', official, target) == 0
    written = torch.load(target, weights_only=True)
    assert set(written) == {'state_dict', 'meta'}
    assert written['meta']['paper'] == 'made_up' and written['meta']['source'] == 'official.pth'
    expected = {
        'backbone.weight': weights['weight'],
        'head.fc.bias': weights['head.fc.bias'],
        'backbone.key': weights['attn.kv'][:3],
        'backbone.value': weights['attn.kv'][3:],
    }
    assert written['state_dict'].keys() == expected.keys()
    for key, tensor in written['state_dict'].items():
        assert torch.equal(tensor, expected[key])
        assert tensor.untyped_storage().nbytes() == tensor.numel() * 4, f'{key} drags others along'
    said = capsys.readouterr().out.splitlines()
    assert 'weight -> backbone.weight' in said and 'head.fc.bias (kept)' in said
    assert 'computed -> backbone.key' in said and 'computed -> backbone.value' in said
    assert any(line.startswith('queue -> ') for line in said)
    assert '2 kept or renamed, 2 computed, 2 of 4 not carried over' in said[-1]


def test_takes_the_part_named_by_key(tool, layout, official, weights, tmp_path):
    target = tmp_path / 'mm.pth'
    assert run(tool, 'made_up', official, target, '--key', 'ema') == 0
    state = torch.load(target, weights_only=True)['state_dict']
    assert torch.equal(state['backbone.weight'], weights['weight'] + 1)


@pytest.mark.parametrize(
    'key, message', [('emma', "'emma' is not among model, epoch, ema"), ('epoch', 'is a int')]
)
def test_says_which_keys_there_are(tool, layout, official, tmp_path, capsys, key, message):
    assert run(tool, 'made_up', official, tmp_path / 'mm.pth', '--key', key) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'mm.pth').exists()


def test_says_when_the_file_has_another_layout(tool, layout, tmp_path, capsys):
    torch.save({'stem.weight': torch.ones(2)}, tmp_path / 'other.pth')
    assert run(tool, 'made_up', tmp_path / 'other.pth', tmp_path / 'mm.pth') == 1
    assert 'not in the layout of made_up' in (said := capsys.readouterr().err)
    assert 'stem.weight' in said


def test_says_which_papers_have_a_layout(tool, official, tmp_path, capsys):
    assert run(tool, 'no_such_paper', official, tmp_path / 'mm.pth') == 1
    assert "'no_such_paper'; known: " in capsys.readouterr().err


def test_refuses_files_that_are_absent_damaged_or_pickled(tool, layout, official, tmp_path, capsys):
    damaged, pickled = tmp_path / 'damaged.pth', tmp_path / 'pickled.pth'
    damaged.write_bytes(official.read_bytes()[:300])
    torch.save(dict(state_dict={}, args=Custom()), pickled)
    for path, message in (
        (tmp_path / 'absent.pth', 'there is no checkpoint'),
        (damaged, 'cannot be read'),
        (pickled, 'is refused'),
    ):
        assert run(tool, 'made_up', path, tmp_path / 'mm.pth') == 1
        assert message in capsys.readouterr().err
