"""Reading numpy files that users made."""

from pathlib import Path
from typing import List, Union

import numpy as np


def read_arrays(path: Union[str, Path], *names: str) -> List[np.ndarray]:
    """Read a ``.npy`` file, or some arrays of an ``.npz`` file, without pickles.

    Args:
        path (str | Path): The file.
        *names (str): Names of the arrays; none for a ``.npy`` file.

    Returns:
        list[np.ndarray]: The arrays, in the order of the names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or of another kind, or if numbers in it are not finite.
    """
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray) == bool(names):
            raise ValueError(f'expected {".npz with " + ", ".join(names) if names else ".npy"}')
        if names:
            with content:
                arrays = [content[name] for name in names]
        else:
            arrays = [content]
        for array in arrays:
            if array.dtype.kind not in 'biufU':
                raise ValueError(f'it holds {array.dtype}, expected numbers')
            if array.dtype.kind == 'f' and not np.isfinite(array).all():
                raise ValueError('it holds numbers that are not finite')
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy raises whatever a damaged file happens to cause
        raise ValueError(f'{path} cannot be read: {error or type(error).__name__}') from error
    return arrays
