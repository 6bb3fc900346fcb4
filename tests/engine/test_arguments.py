"""What constructors refuse by themselves: other types, NaN, and numbers beyond the range of a name."""

from pathlib import Path
from typing import Callable, Dict, Optional, Sequence, Tuple, Union

import numpy as np
import pytest
from torch import nn

from mmextra.engine.arguments import check, checked, resolve_indices
from mmextra.registry import HOOKS, LazyRegistry

NUMBERS = Sequence[float]


@pytest.mark.parametrize(
    'annotation, good, bad, words',
    [
        (int, [3, np.int64(3)], [3.0, '3', None, True, [3]], 'an integer'),
        (float, [3, 0.5, np.float32(1)], ['x', None, False], 'a number'),
        (bool, [True, 0, np.bool_(True)], ['False', 2, None], 'True or False'),
        (str, ['a', Path('a')], [1, ['a'], None], 'a string'),
        (dict, [{}, dict(type='BN')], ['BN', [('type', 'BN')]], 'a dict'),
        (Optional[int], [None, 1], ['1', 0.5], 'an integer or None'),
        (NUMBERS, [[], (1, 0.5), np.ones(2)], ['12', 1, {1: 2}, [None]], 'a sequence, each a number'),
        (Sequence, [[], 'ab'.split()], [3, 'ab'], 'a sequence'),
        (Tuple[int, int], [(1, 2), [1, 2]], [(1,), [1, 2, 3], [1, 'x'], 3], '(an integer, an integer)'),
        (Dict[str, int], [{}, dict(a=1)], [dict(a='1'), 3], 'a dict, with an integer for each key'),
        (Union[str, Sequence[str]], ['a', ['a']], [1, [1]], 'a string or a sequence, each a string'),
        (Optional[Callable], [None, len], [3, 'len'], 'a function or None'),
        (nn.Module, [3, None, nn.ReLU()], [], ''),
    ],
)  # fmt: skip
def test_types(annotation, good, bad, words):
    for value in good:
        check('x', 'x', value, annotation)
    for value in bad:
        with pytest.raises(TypeError) as caught:
            check('x', 'x', value, annotation)
        assert str(caught.value).startswith(f'x must be {words}, got ')


@pytest.mark.parametrize(
    'name, good, bad, words',
    [
        ('num_heads', [1, 8, (1, 2)], [0, -1, [4, 0], ((1, 0),)], 'be at least 1'),
        ('drop_rate', [0, 0.9], [1, -0.1, float('inf')], r'lie in \[0, 1\)'),
        ('flip_prob', [0, 1], [1.1], r'lie in \[0, 1\]'),
        ('mlp_ratio', [0, 4.0], [-1, float('inf')], 'be finite and not negative'),
        ('weight', [-1.0, 0, float('inf')], [], ''),
    ],
)
def test_ranges(name, good, bad, words):
    for value in good:
        check(name, name, value)
    for value in bad:
        with pytest.raises(ValueError, match=f'{name} must {words}, got'):
            check(name, name, value)
    with pytest.raises(ValueError, match=f'{name} must not be NaN'):
        check(name, name, [float('nan')])


def our(cls):
    """A class as if it were defined in the package."""
    cls.__module__ = 'mmextra.ours'
    return cls


@our
class Base:
    def __init__(self, depth: int, ratio: float = None, *args, **kwargs):
        """Keeps them."""
        self.given = (depth, ratio, args, kwargs)


@our
class Part(Base):
    arch_zoo = dict(a=dict(depths=(1, 2), num_heads=3, gate=False))

    def __init__(self, arch: Union[str, dict] = 'a', **kwargs):
        super().__init__(**kwargs)


def test_constructors_check_what_they_and_their_bases_name():
    checked(Part)
    checked(Part)  # once is enough
    assert Part(depth=2).given == (2, None, (), {})
    assert Part(depth=2, ratio=1, other='x').given == (2, 1, (), dict(other='x'))
    assert Base.__init__.__doc__ == 'Keeps them.'
    for arguments, message in (
        (dict(depth='2'), "Part: depth must be an integer, got '2'"),
        (dict(depth=0), 'Part: depth must be at least 1, got 0'),
        (dict(depth=1, arch=3), 'Part: arch must be a string or a dict, got 3'),
        (
            dict(depth=1, arch=dict(depths=3)),
            r"arch\['depths'\] must be a sequence, each an integer",
        ),
        (dict(depth=1, arch=dict(num_heads=0)), r"arch\['num_heads'\] must be at least 1"),
        (dict(depth=1, arch=dict(gate='no')), r"arch\['gate'\] must be True or False"),
        (dict(ratio=1.0), "missing 1 required positional argument: 'depth'"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            Part(**arguments)


def test_classes_of_others_are_left_alone():
    class Theirs:
        def __init__(self, depth: int):
            self.depth = depth

    class Mine(Theirs):
        pass

    assert checked(Mine)('x').depth == 'x'


def test_registering_is_enough():
    assert isinstance(HOOKS, LazyRegistry)
    with pytest.raises(
        TypeError, match="SeedEachEpochHook: seed must be an integer or None, got 'x'"
    ):
        HOOKS.build(dict(type='SeedEachEpochHook', seed='x'))


def test_indices_count_from_the_end_where_negative():
    assert resolve_indices(-1, 4, 'stages') == (3,)
    assert resolve_indices([0, -4, 2], 4, 'stages') == (0, 0, 2)
    for wrong in (4, -5, (0, 4)):
        with pytest.raises(ValueError, match=r'out_indices=\(.*\), but there are 4 stages'):
            resolve_indices(wrong, 4, 'stages')
