"""What a paper's benchmark file hands to the runner."""

from dataclasses import dataclass
from typing import Callable, Optional, Tuple

from torch import nn

# Builds a module and the positional inputs of its forward.
Build = Callable[[], Tuple[nn.Module, tuple]]


@dataclass
class Case:
    """A module of ours beside a yardstick, timed in turn in the same process.

    Attributes:
        name (str): What is timed, say ``'VOLO-D1, 224, batch 4'``.
        ours (Callable): Builds our module and its inputs, on the device that ``cases`` was given.
        yardstick (Callable): Builds what it is held against.
        yardstick_name (str): What that is, with its package.
        reference (Callable, optional): A plain realisation of the same function as ``ours``, or what else
            is worth a third row. Defaults to None.
        backward (bool): Whether to time forward + backward too. Defaults to True.
        reference_name (str): What the third row is called. Defaults to ``'reference'``.
        memory (bool): Whether to measure memory, too. False where one of the three allocates for every element, as
            the record of its allocations would not fit into memory. Defaults to True.
    """

    name: str
    ours: Build
    yardstick: Build
    yardstick_name: str
    reference: Optional[Build] = None
    backward: bool = True
    reference_name: str = 'reference'
    memory: bool = True
