"""What ``torch.load(weights_only=True)`` has to allow so that mmengine can resume."""

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def declare_safe_globals() -> None:
    """Allow the few plain-data classes that a training checkpoint of mmengine holds.

    Besides tensors, such a checkpoint holds log histories
    (:class:`mmengine.logging.HistoryBuffer`) made of numpy arrays and scalars. They carry data
    only; every other pickled class stays refused. A no-op on torch < 2.6, which resumes without.
    """
    multiarray = getattr(np, '_core', None) or np.core
    dtypes = {type(np.dtype(code)) for code in '?bBhHiIlLqQefd'}
    allowed = [HistoryBuffer, np.ndarray, np.dtype, *dtypes]
    # numpy renamed `core` to `_core`; a checkpoint written with the one is read with the other.
    for function in (multiarray.multiarray._reconstruct, multiarray.multiarray.scalar):
        for core in ('core', '_core'):
            allowed.append((function, f'numpy.{core}.multiarray.{function.__name__}'))
    allowed.append((_history_method, 'builtins.getattr'))
    try:
        torch.serialization.add_safe_globals(allowed)
    except (AttributeError, TypeError):
        return


def _history_method(owner: type, name: str):
    """Stand-in for ``getattr`` in checkpoints, where it looks up a history's ``min``, ``mean``...

    Raises:
        ValueError: If anything but a public method of ``HistoryBuffer`` is asked for.
    """
    if owner is not HistoryBuffer or not isinstance(name, str) or name.startswith('_'):
        raise ValueError(f'refused to look up {name!r} of {owner!r} in a checkpoint')
    return getattr(owner, name)
