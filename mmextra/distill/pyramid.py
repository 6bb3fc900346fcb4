"""Feature pyramids of student and teacher: what they are, and whether they can be compared cell by
cell."""

from contextlib import contextmanager
from typing import List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from mmextra.distill.base import Recorder

BLANK_SIZE = (256, 256)


@contextmanager
def evaluating(module: nn.Module):
    """Put a module in eval mode, and each of its parts back in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def as_maps(output: Union[Tensor, Sequence[Tensor]]) -> Tuple[Tensor, ...]:
    """The output of a layer, one tensor or several, as a tuple of maps."""
    return (output,) if isinstance(output, Tensor) else tuple(output)


@torch.no_grad()
def blank_features(
    model: nn.Module, layer: Optional[str] = None, side: str = 'student'
) -> Tuple[Tensor, ...]:
    """The feature maps of one blank image: their number, widths and strides before training starts.

    Args:
        model (nn.Module): A detector with ``extract_feat``. Its modes, its statistics and its
            weights are left as they are.
        layer (str, optional): Name of a submodule. Defaults to None, what ``extract_feat`` returns.
        side (str): What error messages call the model. Defaults to ``'student'``.

    Raises:
        ValueError: If there is no such submodule; the message lists the nearest names.
    """
    recorder = Recorder(model, side)
    recorder.watch([layer] if layer else [])
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, *BLANK_SIZE, device=parameter.device, dtype=parameter.dtype)
    recorder.arm()
    try:
        with evaluating(model):
            features = model.extract_feat(image)
        return as_maps(recorder[layer] if layer else features)
    finally:
        recorder.disarm()


def pyramid_strides(image_size: Sequence[int], maps: Sequence[Tensor]) -> List[int]:
    """Strides in pixels, from the sizes alone.

    Coarse levels round their size up, so each stride is taken from the next finer level.

    Args:
        image_size (Sequence[int]): Height and width of the network's input.
        maps (Sequence[Tensor]): Feature maps (B, D, H, W) in any order.
    """
    sizes = [tuple(level.shape[-2:]) for level in maps]
    strides, before, stride = {}, tuple(image_size), 1
    for size in sorted(set(sizes), reverse=True):
        stride *= round(max(before[0] / size[0], before[1] / size[1]))
        strides[size], before = stride, size
    return [strides[size] for size in sizes]


def check_pyramids(
    student: Sequence[Tensor], teacher: Sequence[Tensor], same_width: bool = True
) -> None:
    """Refuse pyramids that cannot be compared cell by cell.

    Args:
        student, teacher (Sequence[Tensor]): Feature maps of the same image, (B, D, H, W) a level.
        same_width (bool): Whether the widths D must agree, too. Defaults to True.

    Raises:
        ValueError: If they differ in the number of levels, in strides or in width.
    """
    if len(student) != len(teacher):
        raise ValueError(
            f'student and teacher must have the same number of feature levels: the student has '
            f'{len(student)}, the teacher {len(teacher)}. Set `num_outs` of the two necks equal.'
        )
    sizes = [[tuple(level.shape[-2:]) for level in maps] for maps in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f'student and teacher must have feature maps of the same strides: for one image the '
            f"student's are {sizes[0]} cells, the teacher's {sizes[1]}. Use the same `start_level`, "
            '`out_indices` and `strides`, and no `input_size` of the teacher.'
        )
    widths = [[level.shape[1] for level in maps] for maps in (student, teacher)]
    if same_width and widths[0] != widths[1]:
        raise ValueError(
            f"student and teacher features must have the same width: the student's are {widths[0]} "
            f"channels, the teacher's {widths[1]}. Set `neck.out_channels` of the student to the "
            "teacher's; the backbone may be as narrow as you like."
        )
