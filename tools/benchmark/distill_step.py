"""A training step of a student with and without a distillation hook, as modules that can be timed."""

from typing import Tuple

import torch
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.registry import HOOKS, MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmextra.distill.base import _Session


def detection_batch(batch: int, size: int, device: str = 'cpu', objects: int = 6) -> tuple:
    """Random images (B, 3, size, size) with random boxes."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(batch):
        corner = torch.rand(objects, 2, generator=generator) * size * 0.6
        extent = size * (0.1 + 0.3 * torch.rand(objects, 2, generator=generator))
        labels = torch.randint(0, 3, (objects,), generator=generator)
        shape = dict(img_shape=(size, size), pad_shape=(size, size), batch_input_shape=(size, size))
        sample = DetDataSample(metainfo=dict(shape, scale_factor=(1.0, 1.0)))
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corner, corner + extent], 1), labels=labels
        )
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=labels[:0])
        samples.append(sample.to(device))
    return torch.randn(batch, 3, size, size, generator=generator).to(device), samples


class Step(nn.Module):
    """The student's loss in train mode; with a hook, the distilled one.

    Args:
        student (dict): Config of a stock detector.
        hook (dict): Config of a distillation hook.
        mode (str): ``'plain'``: student alone. ``'beside'``: student, and the teacher's forward beside
            it, unused: what distillation costs at least. ``'distilled'``: the hook at work.
    """

    def __init__(self, student: dict, hook: dict, mode: str) -> None:
        super().__init__()
        register_all_modules()
        torch.manual_seed(0)
        self.student = MODELS.build(student).train()
        self.mode = mode
        hook = HOOKS.build(hook)
        session = _Session(self.student)
        hook.teacher = session.teacher(hook.teacher_options)
        session.records.watch(hook.student_records)
        hook.teacher.records.watch(hook.teacher_records)
        hook.adapters = hook.build_adapters(self.student, hook.teacher.model)
        self.adapters = hook.adapters  # listed, so that their gradients are computed as in training
        # The teacher is no part of the module, as it is none of the student.
        self.hidden = dict(hook=hook, session=session)

    def forward(self, inputs: Tensor, data_samples: list) -> Tensor:
        hook, session = self.hidden['hook'], self.hidden['session']
        if self.mode == 'distilled':
            session.arm(hook, 1.0)
        losses = self.student(inputs=inputs, data_samples=data_samples, mode='loss')
        session.disarm()
        if self.mode == 'beside':
            hook.teacher.see(inputs, data_samples, self.student.data_preprocessor)
            hook.teacher.features  # noqa: B018  the property computes
            if 'bbox_head' in hook.student_records:
                hook.teacher.head  # noqa: B018
            hook.teacher.forget()
        values = [
            v if isinstance(v, (list, tuple)) else [v] for k, v in losses.items() if 'loss' in k
        ]
        return sum(v.sum() for several in values for v in several)


def step_and_batch(
    student: dict, hook: dict, mode: str, device: str, batch: int, size: int
) -> Tuple:
    """What a benchmark case builds: the module, and its inputs."""
    return Step(student, hook, mode).to(device), detection_batch(batch, size, device)
