"""Wrong arguments: every constructor works, or says in a ValueError, TypeError or KeyError which argument is wrong.

What a component names in its own signature, it answers for. What it hands on to the host's class of which it is a
kind, or to the host's registry as the config of a part, the host checks in its own words; then it is enough that the
error comes from there.
"""

import re
import traceback
from pathlib import Path

import mmcv
import mmdet
import mmengine
import mmpretrain
import mmseg
import pytest
from components import components
from hypothesis import given
from hypothesis import strategies as st

import mmextra
from mmextra.engine.arguments import RANGES

PACKAGE = str(Path(mmextra.__file__).parent)
HOSTS = [str(Path(h.__file__).parent) for h in (mmcv, mmdet, mmengine, mmpretrain, mmseg)]
COMPONENTS = components()
# Affordable without memory, and more than any shape can hold of what is drawn beside it.
HUGE = 10**6 + 3
# So many of these are made one by one: images to list, layers to build.
LOOPED = frozenset(
    'base_layers bank capacity depth depths layers num_convs num_images num_layers num_levels num_outs '
    'stgm_layers total_d_layer'.split()
)
# What the host's class takes any keyword for: options of saving, and of wrappers for distributed training.
TAKES_ANY_KEYWORD = {
    'AtomicCheckpointHook',
    'CenterDistanceBBoxCoder',
    'ClassIoUMetric',
    'StepwiseDataParallel',
    'ZeroShotIoUMetric',
}

NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([0, -1, HUGE, -HUGE]),
    st.sampled_from([0.0, -0.5, 0.5, 1.0, 1.5, 1e30, float('nan'), float('inf'), -float('inf')]),
)
ODD = st.one_of(
    NUMBERS,
    st.booleans(),
    st.none(),
    st.sampled_from(['', 'nonsense', '3', 'ü']),
    st.sampled_from([[], {}, [None], ['nonsense'], [[]], {'type': 'Nonsense'}, {'nonsense': 1}]),
    st.lists(NUMBERS, max_size=5),
)


def variants(value):
    """Values near a valid one."""
    if isinstance(value, str):
        return st.sampled_from([value.upper(), value + 'x', value[1:], [value]])
    if isinstance(value, (list, tuple)) and value:
        places = st.integers(0, len(value) - 1)
        changed = st.tuples(places, ODD).map(lambda p: [*value[: p[0]], p[1], *value[p[0] + 1 :]])
        return st.one_of(changed, st.sampled_from([value[:-1], [*value, value[-1]], [*value] * 3]))
    if isinstance(value, dict) and value:
        keys = st.sampled_from(sorted(value))
        changed = st.tuples(keys, ODD).map(lambda p: {**value, p[0]: p[1]})
        fewer = keys.map(lambda key: {k: v for k, v in value.items() if k != key})
        return st.one_of(changed, fewer, st.just({**value, 'nonsense': 1}))
    return ODD


def affordable(name, value):
    """Whether a value asks for no more than a test can give."""
    if isinstance(value, dict):
        return all(affordable(k, v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(affordable(name, v) for v in value)
    return not (name in LOOPED and isinstance(value, int) and value >= HUGE)


def keys_of(value):
    """All keys of a config, of any depth."""
    if isinstance(value, dict):
        return {str(k) for k in value} | {n for v in value.values() for n in keys_of(v)}
    return {n for v in value for n in keys_of(v)} if isinstance(value, (list, tuple)) else set()


def too_much(value):
    """Whether a value asks for more than tensors can hold."""
    if isinstance(value, (list, tuple)):
        return any(map(too_much, value))
    return isinstance(value, (int, float)) and value >= HUGE


def holds_config(value):
    return isinstance(value, dict) or (
        isinstance(value, (list, tuple)) and any(map(holds_config, value))
    )


def verdict(component, name, value, error):
    """What is wrong about an error that a value of an argument caused, or None."""
    before = component.arguments().get(name, component.own().get(name))
    default = getattr(before, 'default', before)
    words = {name, *keys_of(value), *keys_of(default)}
    named = any(re.search(rf'\b{re.escape(word)}\b', str(error)) for word in words if word)
    if isinstance(error, FileNotFoundError) or (
        named and isinstance(error, (TypeError, ValueError, KeyError))
    ):
        return None
    of_part = re.match(
        r'[A-Z]\w*: .* (must|lacks) ', str(error)
    )  # what our parts say of themselves
    if of_part and holds_config(value):
        return None
    frames = traceback.extract_tb(error.__traceback__)
    layers = [f.filename for f in frames if f.filename.startswith((PACKAGE, *HOSTS))]
    raised_here = frames[-1].filename.startswith(PACKAGE)
    of_host = name in component.handed_on() and not layers[-1].startswith(PACKAGE)
    part = too_much(value) or holds_config(value) or holds_config(default)
    if of_host or (part and not raised_here):
        return None
    last = next(f for f in reversed(frames) if f.filename.startswith(PACKAGE))
    where = f'{Path(last.filename).relative_to(PACKAGE)}:{last.lineno}'
    return f'{component}({name}={value!r}): {type(error).__name__}: {error} [{where}]'


def trial(component, name, value):
    """Build with one argument changed; return what is wrong about the answer, or None."""
    try:
        component.build(**{**component.arguments(), name: value})
    except Exception as error:
        return verdict(component, name, value, error)
    return None


@pytest.mark.parametrize('component', [c for c in COMPONENTS if c.own()], ids=str)
@given(data=st.data())
def test_wrong_arguments_are_named(component, data):
    own = component.own()
    name = data.draw(st.sampled_from(sorted(own)), label='argument')
    valid = component.arguments().get(name, own[name].default)
    value = data.draw(st.one_of(ODD, variants(valid)).filter(lambda v: affordable(name, v)), name)
    problem = trial(component, name, value)
    assert problem is None, problem


@pytest.mark.parametrize('component', COMPONENTS, ids=str)
def test_valid_arguments_work_and_unknown_ones_are_named(component):
    component.build(**component.arguments())
    if component.name not in TAKES_ANY_KEYWORD:
        with pytest.raises((TypeError, ValueError, KeyError), match='nonsense|takes no arguments'):
            component.build(**component.arguments(), nonsense=1)


def test_every_range_is_that_of_some_argument():
    classes = [component.cls for component in COMPONENTS]
    archs = [arch for cls in classes for arch in getattr(cls, 'arch_zoo', {}).values()]
    archs += [getattr(cls, 'ARCH_DEFAULTS', {}) for cls in classes]
    known = {n for component in COMPONENTS for n in component.own()} | {n for a in archs for n in a}
    ranged = {name for names, _, _ in RANGES for name in names}
    # Of the sources of embeddings, and of the parts of a backbone.
    assert ranged - known == {'dims'}
