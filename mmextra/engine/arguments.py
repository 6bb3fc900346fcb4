"""What the constructors of all components check: types by annotation, and ranges by name."""

import functools
import inspect
import math
import reprlib
from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from os import PathLike
from types import UnionType
from typing import Any, Iterator, Sequence, Tuple, Union, get_args, get_origin

import numpy as np

# Names that mean the same in every component; of a sequence, every number is meant.
COUNTS = frozenset(
    'base_channels crop_size depth depths dilation dilations dim dim_qk dim_v dims '
    'downsample_ratio ds_heads elsa_kernel embed_dims expand_ratio fc_channels '
    'feedforward_channels group_width head_dim head_expand heads hidden img_size in_channels '
    'input_resolution input_size interval k_window_sizes kernel_size kernel_sizes key_size '
    'label_size layers mid_channels num_batches num_categories num_classes num_convs '
    'num_features num_heads num_images num_last num_layers num_outs num_pairs num_semantic '
    'num_tokens out_channels output_dim patch_size pool_sizes prompt_dim reduction '
    'reductions reg_max restore_k_window_size roi_size sample_size segment_dims size '
    'stem_stride stem_widths stride strides student_channels teacher_channels teacher_size '
    'token_stride width window_sample_size window_size'.split()
)
RATES = frozenset(
    'attn_drop attn_drop_rate drop_path_rate drop_rate dropout_ratio proj_drop '
    'prompt_dropout'.split()
)
PARTS = frozenset('flip_prob merge_iou_thr momentum'.split())
AMOUNTS = frozenset(
    'begin cos_reg_maps eps ffn_ratio finest_scale mlp_ratio mlp_ratios noise padding power seed stem_channels '
    'warmup'.split()
)
RANGES = (
    (COUNTS, lambda v: v >= 1, 'be at least 1'),
    (RATES, lambda v: 0 <= v < 1, 'lie in [0, 1)'),
    (PARTS, lambda v: 0 <= v <= 1, 'lie in [0, 1]'),
    (AMOUNTS, lambda v: 0 <= v < math.inf, 'be finite and not negative'),
)
WORDS = {
    bool: 'True or False',
    int: 'an integer',
    float: 'a number',
    str: 'a string',
    dict: 'a dict',
    list: 'a sequence',
    Sequence: 'a sequence',
    type(None): 'None',
}


def checked(cls: type) -> type:
    """Have a class check the arguments of its constructor, and of those that it inherits from this package.

    A value must be of the annotated type, as far as that is made of numbers, strings, dicts and sequences; a list
    will do for a tuple, as configs have it. No number may be NaN, and those with a name in :data:`RANGES` lie in that
    range. A default is what the class says it is.

    Args:
        cls (type): The class; it is changed.

    Returns:
        type: The class.
    """
    for base in cls.__mro__:
        init = vars(base).get('__init__')
        if base.__module__.startswith('mmextra.') and inspect.isfunction(init):
            if not hasattr(init, 'checks_arguments'):
                base.__init__ = _checking(init)  # type: ignore[misc]
    return cls


def _checking(init):
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self, *args, **kwargs):
        try:
            given = signature.bind(self, *args, **kwargs).arguments
        except TypeError:
            given = {}  # Python's own message, from the call, is the better one
        for name, value in given.items():
            parameter = signature.parameters[name]
            named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if named and value is not parameter.default:
                check(f'{type(self).__name__}: {name}', name, value, parameter.annotation)
                if name == 'arch' and isinstance(value, Mapping):
                    check_arch(type(self), value)
        init(self, *args, **kwargs)

    wrapper.checks_arguments = True
    return wrapper


def check(title: str, name: str, value: Any, annotation: Any = Any) -> None:
    """Check one value.

    Args:
        title (str): What messages call it.
        name (str): Name of the argument, for its range.
        value (Any): The value.
        annotation (Any): Its type. Defaults to ``Any``.

    Raises:
        TypeError: If it is of another type.
        ValueError: If a number is NaN, or beyond the range.
    """
    if not fits(value, annotation):
        raise TypeError(f'{title} must be {describe(annotation)}, got {reprlib.repr(value)}')
    for number in numbers_in(value):
        if number != number:
            raise ValueError(f'{title} must not be NaN, got {reprlib.repr(value)}')
        for names, holds, text in RANGES:
            if name in names and not holds(number):
                raise ValueError(f'{title} must {text}, got {reprlib.repr(value)}')


def resolve_indices(given: Union[int, Sequence[int]], count: int, parts: str) -> Tuple[int, ...]:
    """Indices of a backbone's parts, counted from 0.

    Args:
        given (int | Sequence[int]): Some of them; negative ones count from the end.
        count (int): How many parts there are.
        parts (str): What they are called, for the message.

    Returns:
        tuple[int]: None of them negative, in the order given.

    Raises:
        ValueError: If there is no such part.
    """
    given = (given,) if isinstance(given, int) else tuple(given)
    if not all(-count <= i < count for i in given):
        raise ValueError(f'out_indices={given}, but there are {count} {parts}')
    return tuple(i % count for i in given)


def check_arch(cls: type, arch: Mapping) -> None:
    """Check a dict of settings: each must be like that of the named architectures.

    Args:
        cls (type): A backbone, with the named architectures in ``arch_zoo``.
        arch (Mapping): The settings.
    """
    examples = [*getattr(cls, 'arch_zoo', {}).values(), getattr(cls, 'ARCH_DEFAULTS', {})]
    for key, value in arch.items():
        example = next((e[key] for e in examples if key in e), None)
        if isinstance(example, (list, tuple)):
            check(f'{cls.__name__}: arch[{key!r}]', key, value, Sequence[type(example[0])])  # type: ignore[misc]
        elif example is not None:
            check(f'{cls.__name__}: arch[{key!r}]', key, value, type(example))


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value is of a type; of types that are not known here every value is."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is None or annotation is type(None):
        return value is None
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if annotation is bool:
        return (
            isinstance(value, (bool, np.bool_)) or isinstance(value, Integral) and value in (0, 1)
        )
    if annotation in (int, float):
        number = Integral if annotation is int else Real
        return isinstance(value, number) and not isinstance(value, bool)
    if annotation is str:
        return isinstance(value, (str, PathLike))
    kind = origin or annotation
    if not inspect.isclass(kind):
        return True
    if kind is Callable:
        return callable(value)
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(
            fits(one, of_values) for of_values in inner[1:] for one in value.values()
        )
    if not issubclass(kind, Collection):
        return True
    if not isinstance(value, Collection) or isinstance(value, (str, bytes, Mapping)):
        return False
    if kind is tuple and inner and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(map(fits, value, inner))
    return all(fits(one, inner[0]) for one in value) if inner else True


def describe(annotation: Any) -> str:
    """A type in words."""
    if annotation in WORDS:
        return WORDS[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Callable:
        return 'a function'
    if origin in (Union, UnionType):
        return ' or '.join(dict.fromkeys(map(describe, inner)))
    if origin is dict:
        return f'a dict, with {describe(inner[1])} for each key'
    if origin is tuple and inner[-1] is not Ellipsis:
        return f'({", ".join(map(describe, inner))})'
    return f'a sequence, each {describe(inner[0])}' if inner else annotation.__name__


def numbers_in(value: Any) -> Iterator[Real]:
    """The numbers of a value: itself, or those of a sequence of any depth."""
    if isinstance(value, Real) and not isinstance(value, bool):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from numbers_in(one)
