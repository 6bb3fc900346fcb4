"""Bad checkpoints: refused or reported by name, never run and never half read."""

import builtins
import collections
import functools
import io
import os
import pathlib
import subprocess
import threading
import types
from itertools import count

import pytest
import torch
from damage import damaged
from hypothesis import given
from hypothesis import strategies as st

from mmextra.engine.checkpoint import read_checkpoint

CONTENT = dict(
    state_dict={'conv.weight': torch.arange(24.0).view(2, 3, 2, 2), 'conv.bias': torch.zeros(2)},
    meta=dict(epoch=3, names=['a', 'b']),
)
NAMES = count()
RAN = []


def ran(*args, **kwargs):
    """What no checkpoint may call."""
    RAN.append(args)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


FORBIDDEN = [
    *(Call(ran, 1), Call(os.system, 'false'), Call(subprocess.getoutput, 'false')),
    *(Call(builtins.eval, '1'), Call(builtins.exec, ''), Call(getattr, ran, '__call__')),
    *(Call(functools.partial, ran), Call(pathlib.Path, 'x'), Call(io.BytesIO, b'')),
    *(Call(types.SimpleNamespace), Call(threading.Event), Call(collections.UserDict)),
    *(ran, os.system, eval, ValueError('x'), torch.nn.Linear(1, 1), pathlib.PurePath('x')),
]
KEYS = st.one_of(st.text(max_size=3), st.integers())


def nested(value):
    """A value, wrapped in some lists, tuples and dicts."""
    return st.recursive(
        st.just(value),
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=2),
            st.tuples(inner, st.just(torch.ones(1))),
            st.dictionaries(KEYS, inner, min_size=1, max_size=2),
        ),
        max_leaves=3,
    )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('checkpoints')


@functools.cache
def written(zipped):
    """A good checkpoint, in the format of today or in the one before torch 1.6."""
    stream = io.BytesIO()
    torch.save(CONTENT, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


@given(st.sampled_from(FORBIDDEN).flatmap(nested), st.booleans())
def test_forbidden_classes_are_refused(folder, extra, zipped):
    path = folder / f'forbidden{next(NAMES)}.pth'
    torch.save(dict(CONTENT, extra=extra), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=f'{path.name} is refused: it holds a pickled'):
        read_checkpoint(str(path))
    assert not RAN
    path.unlink()


@given(st.data())
def test_cut_files_are_reported(folder, data):
    zipped = data.draw(st.booleans(), 'zip file')
    content = written(zipped)
    path = folder / f'cut{next(NAMES)}.pth'
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1), 'bytes')])
    # In the old format, half a name of a class is a name, too.
    reason = 'cannot be read: it is cut short' if zipped else r'(cannot be read|is refused): it'
    with pytest.raises(ValueError, match=f'{path.name} {reason}'):
        read_checkpoint(str(path))
    path.unlink()


@given(st.data())
def test_damaged_files_are_read_or_reported(folder, data):
    """Neither format is guarded by checks of its content, so a flipped bit may give another number, but no crash."""
    content = written(data.draw(st.booleans(), 'zip file'))
    header = data.draw(st.sampled_from([content, content[:200]]), 'part')
    path = folder / f'damaged{next(NAMES)}.pth'
    path.write_bytes(data.draw(damaged(header), 'file') + content[len(header) :])
    try:
        found = read_checkpoint(str(path))
    except ValueError as error:
        assert path.name in str(error)
    else:
        assert isinstance(found, dict)
    path.unlink()
