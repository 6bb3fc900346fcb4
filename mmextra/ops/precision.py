"""Types in which losses, scores and boxes are computed."""

import functools
from typing import List

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """A tensor of half precision, as autocast makes them, in float32; any other as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_common_type(*tensors: Tensor) -> List[Tensor]:
    """Tensors in the widest of their types, at least float32."""
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    return [t.to(dtype) for t in tensors]
