"""How much torch is asked to do, as counted rather than timed."""

from typing import Sequence

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Operators(TorchDispatchMode):
    """Counts the operators that run inside the ``with`` block, and the elements that they give.

    Args:
        but (Sequence[tuple]): Shapes whose elements are not counted.
    """

    def __init__(self, but: Sequence[tuple] = ()) -> None:
        super().__init__()
        self.but, self.calls, self.elements = list(but), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        self.calls += 1
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tuple(tensor.shape) not in self.but:
                self.elements += tensor.numel()
        return output
