"""What ``torch.load(weights_only=True)`` has to allow so that mmengine can resume from its own
checkpoints."""

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def declare_safe_globals() -> None:
    """Allow the few plain-data classes that a training checkpoint of mmengine holds.

    Besides tensors, such a checkpoint holds log histories (:class:`mmengine.logging.HistoryBuffer`)
    made of numpy arrays and scalars. They carry data only; every other pickled class stays refused.
    A no-op on torch < 2.4, which has no such list.
    """
    if not hasattr(torch.serialization, 'add_safe_globals'):
        return
    multiarray = getattr(np, '_core', None) or np.core
    scalar_types = [
        np.float16,
        np.float32,
        np.float64,
        np.int8,
        np.int16,
        np.int32,
        np.int64,
        np.uint8,
        np.bool_,
    ]
    allowed = [
        HistoryBuffer,
        np.ndarray,
        np.dtype,
        multiarray.multiarray._reconstruct,
        multiarray.multiarray.scalar,
        *{type(np.dtype(t)) for t in scalar_types},
    ]
    # numpy renamed `core` to `_core`; a checkpoint written with the one is read with the other.
    allowed += [
        (f, f'numpy.{core}.multiarray.{f.__name__}')
        for f in allowed[3:5]
        for core in ('core', '_core')
    ]
    try:
        torch.serialization.add_safe_globals(allowed)
    except TypeError:  # torch 2.4 takes no (object, name) pairs
        torch.serialization.add_safe_globals([a for a in allowed if not isinstance(a, tuple)])
