"""Distillation as a hook on a stock student.

A distillation method is a :class:`DistillHook`: it names what it records on either side and
computes extra losses from it. The student's class, config and checkpoint stay stock. What several
methods on one student share (one teacher forward, the student's records) is kept in one
:class:`_Session` per runner.
"""

import copy
import difflib
import functools
import random
import weakref
from abc import abstractmethod
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_distributed
from mmengine.hooks import Hook
from mmengine.hub import get_config
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn

from mmextra.engine.checkpoint import read_checkpoint, state_dict_of

LossDict = Dict[str, Union[Tensor, List[Tensor]]]
ADAPTERS_KEY = 'mmextra_adapters'


@dataclass
class Call:
    """One call of a recorded method or module: what went in and what came out."""

    args: tuple
    kwargs: dict
    output: Any


class Recorder:
    """Records what named submodules and methods of a model return while it is armed.

    A name is the dotted path of a submodule (``'neck'``, ``'backbone.layer4'``: its output), one
    with ``()`` a method (``'bbox_head.get_targets()'``: its return value), one with ``:input`` the
    first input of a submodule, cloned because modules like ReLU overwrite it in place
    (``'backbone.layer4.1.relu:input'``).

    Args:
        model (nn.Module): The model to record. Nothing about it changes while the recorder is not
            armed.
        side (str): What error messages call it, ``'student'`` or ``'teacher'``.
    """

    def __init__(self, model: nn.Module, side: str) -> None:
        self.model = model
        self.side = side
        self.names: List[str] = []
        self._calls: Dict[str, List[Call]] = defaultdict(list)
        self._stack = ExitStack()

    def watch(self, names: Sequence[str]) -> None:
        """Add names to what is recorded.

        Raises:
            ValueError: If the model has no such submodule or method. The message lists the nearest
                names.
        """
        for name in names:
            self._owner(name)
            if name not in self.names:
                self.names.append(name)

    def _owner(self, name: str) -> nn.Module:
        """The submodule that a name is about."""
        path = name[:-2].rpartition('.')[0] if name.endswith('()') else name.removesuffix(':input')
        modules = dict(self.model.named_modules())
        if path not in modules:
            near = difflib.get_close_matches(path, [m for m in modules if m], n=5, cutoff=0.3)
            children = [f'{k}' for k, _ in self.model.named_children()]
            raise ValueError(
                f'the {self.side} ({type(self.model).__name__}) has no submodule {path!r}; near names: '
                f'{", ".join(near) or "none"}; its children: {", ".join(children)}'
            )
        if name.endswith('()'):
            method = name[:-2].rpartition('.')[2]
            if not callable(getattr(modules[path], method, None)):
                methods = [
                    m
                    for m in dir(modules[path])
                    if callable(getattr(modules[path], m, None)) and m[0] != '_'
                ]
                near = difflib.get_close_matches(method, methods, n=5, cutoff=0.3)
                raise ValueError(
                    f'{type(modules[path]).__name__} ({self.side}, {path!r}) has no method {method!r}; '
                    f'near names: {", ".join(near) or "none"}'
                )
        return modules[path]

    @property
    def armed(self) -> bool:
        """Whether calls are being recorded."""
        return bool(self._stack._exit_callbacks)

    def arm(self) -> None:
        """Start recording."""
        for name in self.names:
            module, log = self._owner(name), self._calls[name]
            if name.endswith('()'):
                method = name[:-2].rpartition('.')[2]
                setattr(module, method, _recorded(getattr(module, method), log))
                self._stack.callback(delattr, module, method)
            elif name.endswith(':input'):
                # Bound by keyword, else every closure would see the last `log` of the loop.
                def keep_input(_, args, log=log):
                    log.append(Call(args, {}, args[0].clone()))

                self._stack.callback(module.register_forward_pre_hook(keep_input).remove)
            else:

                def keep_output(_, args, kwargs, output, log=log):
                    log.append(Call(args, kwargs, output))

                handle = module.register_forward_hook(keep_output, with_kwargs=True)
                self._stack.callback(handle.remove)

    def disarm(self) -> None:
        """Stop recording, leave the model as it was and forget what was recorded."""
        self._stack.close()
        self.clear()

    def clear(self) -> None:
        """Forget what was recorded."""
        for log in self._calls.values():
            log.clear()

    def calls(self, name: str) -> List[Call]:
        """Every call recorded under ``name``, in order.

        Raises:
            RuntimeError: If there was none: the module did not take part in this forward pass.
        """
        if not self._calls[name]:
            raise RuntimeError(
                f'{name!r} of the {self.side} ({type(self.model).__name__}) did not run in this iteration'
            )
        return self._calls[name]

    def __getitem__(self, name: str) -> Any:
        """What the last call under ``name`` returned."""
        return self.calls(name)[-1].output


def _recorded(method: Callable, log: List[Call]) -> Callable:

    @functools.wraps(method)
    def wrapper(*args, **kwargs):
        output = method(*args, **kwargs)
        log.append(Call(args, kwargs, output))
        return output

    return wrapper


@dataclass
class PixelFormat:
    """How a data preprocessor turns pixels into network input."""

    mean: Tensor
    std: Tensor
    swap: bool
    pad_value: float = 0.0

    @classmethod
    def of(cls, preprocessor: nn.Module) -> 'PixelFormat':
        """Read the format off a stock data preprocessor (mmengine, mmdet, mmseg or mmpretrain)."""
        flags = (
            '_channel_conversion',
            'channel_conversion',
            'to_rgb',
        )  # mmengine and mmdet, mmseg, mmpretrain
        swap = next(
            (bool(getattr(preprocessor, f)) for f in flags if hasattr(preprocessor, f)), False
        )
        normalises = getattr(preprocessor, '_enable_normalize', False)
        mean = preprocessor.mean.flatten() if normalises else torch.zeros(3)
        std = preprocessor.std.flatten() if normalises else torch.ones(3)
        return cls(mean, std, swap, float(getattr(preprocessor, 'pad_value', None) or 0.0))

    def same_as(self, other: 'PixelFormat') -> bool:
        """Whether two formats give the same input for the same image."""
        return (
            self.swap == other.swap
            and self.pad_value == other.pad_value
            and torch.equal(self.mean.cpu(), other.mean.cpu())
            and torch.equal(self.std.cpu(), other.std.cpu())
        )

    def convert(self, inputs: Tensor, other: 'PixelFormat', data_samples: Optional[list]) -> Tensor:
        """Rewrite a batch in this format, (B, 3, H, W), as one in another. Padding becomes the other's padding."""

        def column(values: Tensor) -> Tensor:
            return values.to(inputs).view(1, -1, 1, 1)

        pixels = inputs * column(self.std) + column(self.mean)
        if self.swap != other.swap:
            pixels = pixels.flip(1)
        converted = (pixels - column(other.mean)) / column(other.std)
        for image, sample in zip(converted, data_samples or ()):
            height, width = (getattr(sample, 'metainfo', {}).get('img_shape') or image.shape[-2:])[
                :2
            ]
            image[:, height:] = other.pad_value
            image[:, :, width:] = other.pad_value
        return converted


class Teacher:
    """A frozen model, and what it computes for the batch that the student is trained on.

    Whatever is asked for is computed at most once per batch, however many hooks ask, under
    ``no_grad`` and under the autocast that the student runs in.

    Args:
        config (str | dict): ``'mmdet::gfl/...'``, the path of a config, or a config dict (whole, or
            its ``model`` alone). Where it has no ``data_preprocessor``, the teacher takes the
            student's input as it is.
        checkpoint (str, optional): The teacher's weights. Without them the teacher is random, and a
            warning says so. Defaults to None.
        mode (str): ``'eval'``, or ``'train'`` to use (and move) batch statistics. Defaults to
            ``'eval'``.
        input_size (int | tuple, optional): Resize the student's input to this (height, width) for
            the teacher. Defaults to None, the student's own size.

    Raises:
        ValueError: If the checkpoint does not fit the config.
    """

    def __init__(
        self,
        config: Union[str, dict],
        checkpoint: Optional[str] = None,
        mode: str = 'eval',
        input_size: Optional[Union[int, Tuple[int, int]]] = None,
    ) -> None:
        if mode not in ('eval', 'train'):
            raise ValueError(f"teacher mode must be 'eval' or 'train', got {mode!r}")
        self.model, self.pixels = _build_teacher(config)
        if checkpoint is None:
            print_log(
                'the teacher has no checkpoint: its weights are random, and the student learns noise from it. '
                'Give teacher=dict(config=..., checkpoint=...).',
                'current',
                level=30,
            )
            self.model.init_weights()
        else:
            _load_strictly(self.model, checkpoint)
        self.model.requires_grad_(False)
        self.model.train(mode == 'train')
        self.input_size = (input_size, input_size) if isinstance(input_size, int) else input_size
        self.records = Recorder(self.model, 'teacher')
        self._inputs: Optional[Tensor] = None
        self._preprocessor: Optional[nn.Module] = None
        self._memo: Dict[str, Any] = {}

    def see(self, inputs: Tensor, data_samples: Optional[list], preprocessor: nn.Module) -> None:
        """Take the batch that the student sees, in the student's format. The same batch again changes nothing."""
        if inputs is self._inputs:
            return
        self.forget()
        self._inputs, self._data_samples = inputs, data_samples
        if preprocessor is not self._preprocessor:  # once: comparing numbers waits for the device
            self._preprocessor, self._student_pixels = preprocessor, PixelFormat.of(preprocessor)
            self._converts = self.pixels is not None and not self.pixels.same_as(
                self._student_pixels
            )
        self._autocast = _autocast_of(inputs.device.type)

    def forget(self) -> None:
        """Drop the batch and everything computed for it."""
        self._inputs = None
        self._memo.clear()
        self.records.clear()

    @contextmanager
    def context(self):
        """Where the teacher computes: no gradient, the student's autocast. For methods of the teacher's own parts."""
        with torch.no_grad(), torch.autocast(**self._autocast):
            yield self.model

    def _once(self, key: str, compute: Callable[[], Any]) -> Any:
        if key not in self._memo:
            armed_here = not self.records.armed
            if armed_here:
                self.records.arm()
            try:
                with self.context():
                    self._memo[key] = compute()
            finally:
                if armed_here:
                    self.records._stack.close()
            self._check_finite(self._memo[key], compute)
        return self._memo[key]

    @property
    def inputs(self) -> Tensor:
        """The batch in the teacher's own pixel format and size, (B, 3, H, W)."""
        if 'inputs' not in self._memo:
            x = self._inputs
            if self._converts:
                x = self._student_pixels.convert(x, self.pixels, self._data_samples)
            if self.input_size is not None and tuple(x.shape[-2:]) != tuple(self.input_size):
                x = F.interpolate(
                    x,
                    size=tuple(self.input_size),
                    mode='bilinear',
                    align_corners=False,
                    antialias=True,
                )
            self._memo['inputs'] = x
        return self._memo['inputs']

    @property
    def features(self) -> Any:
        """What ``extract_feat`` of the teacher returns: backbone and neck, nothing after them."""
        return self._once('features', lambda: self.model.extract_feat(self.inputs))

    @property
    def head(self) -> Any:
        """The raw outputs of the teacher's ``bbox_head`` on its own features."""
        features = self.features
        return self._once('head', lambda: self.model.bbox_head(features))

    def _check_finite(self, value: Any, compute: Callable[[], Any]) -> None:
        flags = [t.isfinite().all() for t in _tensors(value) if t.is_floating_point()]
        if not flags or torch.stack(flags).all():
            return
        culprit: List[str] = []

        def look(name):

            def hook(_, __, output):
                if not culprit and not all(t.isfinite().all() for t in _tensors(output)):
                    culprit.append(name)

            return hook

        handles = [
            m.register_forward_hook(look(n))
            for n, m in self.model.named_modules()
            if not any(m.children())
        ]
        with self.context():
            compute()
        for handle in handles:
            handle.remove()
        where = culprit[0] if culprit else 'its output'
        raise FloatingPointError(
            f'the teacher ({type(self.model).__name__}) gave NaN or infinity, first in {where!r}. Nothing was learned '
            'from it: the last checkpoint is good. Check the teacher checkpoint, and its precision if AMP is on.'
        )


def _autocast_of(device: str) -> dict:
    """Arguments of ``torch.autocast`` for what is in force on this type of device."""
    if hasattr(torch, 'get_autocast_dtype'):
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    elif device == 'cpu':  # torch < 2.4
        dtype, enabled = torch.get_autocast_cpu_dtype(), torch.is_autocast_cpu_enabled()
    else:
        dtype, enabled = torch.get_autocast_gpu_dtype(), torch.is_autocast_enabled()
    return dict(device_type=device, dtype=dtype, enabled=enabled)


def _tensors(value: Any) -> List[Tensor]:
    """All tensors of a nested structure."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in _tensors(v)] if isinstance(value, (list, tuple)) else []


def _build_teacher(config: Union[str, dict]) -> Tuple[nn.Module, Optional[PixelFormat]]:
    """Build the model of a config under the config's own default scope, without any pre-trained initialisation;
    and read the pixel format that it was trained with, None if the config does not say."""
    if isinstance(config, str):
        config = get_config(config) if '::' in config else Config.fromfile(config)
    model = copy.deepcopy(config['model'] if 'model' in config else config)
    model = model.to_dict() if isinstance(model, (Config, ConfigDict)) else dict(model)
    if model.get('data_preprocessor') is None and config.get('data_preprocessor') is not None:
        model['data_preprocessor'] = copy.deepcopy(dict(config['data_preprocessor']))
    scope = config.get('default_scope') or model.get('_scope_')
    # Two-stage detectors read parts of their config as attributes.
    model = ConfigDict(_without_pretrained(model), **(dict(_scope_=scope) if scope else {}))
    teacher = MODELS.build(model)
    known = model.get('data_preprocessor') is not None
    return teacher, PixelFormat.of(teacher.data_preprocessor) if known else None


def _without_pretrained(cfg: Any) -> Any:
    """A config in which nothing is initialised from a file: the teacher's checkpoint brings all weights."""
    if isinstance(cfg, dict):
        pretrained = (
            isinstance(cfg.get('init_cfg'), dict) and cfg['init_cfg'].get('type') == 'Pretrained'
        )
        return {
            k: _without_pretrained(v)
            for k, v in cfg.items()
            if k != 'pretrained' and not (k == 'init_cfg' and pretrained)
        }
    return [_without_pretrained(v) for v in cfg] if isinstance(cfg, list) else cfg


def _load_strictly(model: nn.Module, checkpoint: str) -> None:
    """Load weights of which every key is accounted for, as the model itself reads them: position maps of another
    image size are fitted, old key names are translated. Files of early mmengine also hold pixel means."""
    state = state_dict_of(read_checkpoint(checkpoint))
    state = {k: v for k, v in state.items() if not k.startswith('data_preprocessor.')}
    try:
        missing, left_over = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes
        problems = [line.strip() for line in str(error).splitlines()[1:]]
    else:
        problems = [f'missing {k}' for k in missing if not k.endswith('num_batches_tracked')]
        problems += [f'left over {k}' for k in left_over]
    if problems:
        more = f' (+{len(problems) - 6} more)' if len(problems) > 6 else ''
        raise ValueError(
            f'teacher checkpoint {checkpoint} is not of this {type(model).__name__}: '
            f'{"; ".join(problems[:6])}{more}. Give the checkpoint that belongs to the teacher config.'
        )


@contextmanager
def preserved_rng():
    """Leave every random number generator as it was, so that building a teacher does not change the student's run."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield
    random.setstate(python)
    np.random.set_state(numpy)


@dataclass
class _Session:
    """What the distillation hooks of one runner share."""

    student: nn.Module
    records: Recorder = field(init=False)
    teachers: Dict[str, Teacher] = field(default_factory=dict)
    armed: List['DistillHook'] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.records = Recorder(self.student, 'student')

    def teacher(self, options: dict) -> Teacher:
        """The teacher of these options; hooks that give the same options get the same one."""
        key = repr(sorted((k, repr(v)) for k, v in options.items()))
        if key not in self.teachers:
            with preserved_rng():
                self.teachers[key] = Teacher(**options)
            self.teachers[key].model.to(next(self.student.parameters()).device)
        return self.teachers[key]

    def arm(self, hook: 'DistillHook', factor: float) -> None:
        hook.factor = factor
        if not self.armed:
            self.records.arm()
            self._handle = self.student.register_forward_hook(self._add_losses(), with_kwargs=True)
        self.armed.append(hook)

    def disarm(self) -> None:
        if self.armed:
            self.armed.clear()
            self._handle.remove()
            self.records.disarm()
            for teacher in self.teachers.values():
                teacher.forget()

    def _add_losses(self) -> Callable:

        def add_losses(student, args, kwargs, losses):
            if kwargs.get('mode') != 'loss':
                return None
            inputs = kwargs['inputs'] if 'inputs' in kwargs else args[0]
            data_samples = kwargs['data_samples'] if 'data_samples' in kwargs else args[1]
            losses = dict(losses)
            for hook in self.armed:
                hook.teacher.see(inputs, data_samples, student.data_preprocessor)
                with torch.autocast(inputs.device.type, enabled=False):
                    extra = hook.losses(self.records, hook.teacher, inputs, data_samples)
                for name, value in extra.items():
                    if name in losses:
                        raise ValueError(
                            f'{type(hook).__name__} adds {name!r}, which the student or another hook has '
                            'already: two hooks of one kind on one student need different names'
                        )
                    scaled = (
                        [v * hook.factor for v in value]
                        if isinstance(value, (list, tuple))
                        else value * hook.factor
                    )
                    losses[name] = scaled
            self.records.clear()
            return losses

        return add_losses


_SESSIONS: 'weakref.WeakKeyDictionary[Runner, _Session]' = weakref.WeakKeyDictionary()


class DistillHook(Hook):
    """Base of the distillation methods: a frozen teacher adds losses to a stock student.

    A subclass names what it records, checks that teacher and student fit, and computes losses:

    - :attr:`student_records`, :attr:`teacher_records`: names as in :class:`Recorder`;
    - :meth:`check`: raise ``ValueError`` if the two models cannot be distilled;
    - :meth:`build_adapters`: trainable modules beside the student, if the method has any;
    - :meth:`losses`: the extra entries of the loss dict.

    The losses are added by a forward hook on the student, which is there only while a training
    iteration runs: validation, testing, EMA copies and exported models never see it. Adapters are
    optimised in a parameter group of their own with the settings of the student's first group,
    averaged over processes, and saved in the checkpoint under ``'mmextra_adapters'``, outside the
    student's ``state_dict``.

    Args:
        teacher (dict): ``config`` (``'mmdet::...'``, path or dict), ``checkpoint``, and optionally
            ``mode`` and ``input_size``; see :class:`Teacher`.
        begin (int): Epoch (or iteration) at which distillation begins. Defaults to 0.
        end (int, optional): Epoch (or iteration) at which it ends. Defaults to None, never.
        warmup (int): The extra losses grow linearly from 0 over this many epochs (or iterations)
            after ``begin``. Defaults to 0.
        by_epoch (bool): Whether the three are counted in epochs. Defaults to True.
    """

    student_records: Tuple[str, ...] = ()
    teacher_records: Tuple[str, ...] = ()

    def __init__(
        self,
        teacher: dict,
        begin: int = 0,
        end: Optional[int] = None,
        warmup: int = 0,
        by_epoch: bool = True,
    ) -> None:
        if 'config' not in teacher:
            raise ValueError(
                f"teacher needs a 'config' ('mmdet::...', a path or a dict), got keys {sorted(teacher)}"
            )
        if end is not None and end <= begin:
            raise ValueError(f'end ({end}) must be greater than begin ({begin})')
        self.teacher_options = dict(teacher)
        self.begin, self.end, self.warmup, self.by_epoch = begin, end, warmup, by_epoch
        self.teacher: Optional[Teacher] = None
        self.adapters: Optional[nn.Module] = None

    @property
    def enabled(self) -> bool:
        """Whether any loss has a weight. If not, no teacher is built and the run is the plain one."""
        return True

    def check(self, student: nn.Module, teacher: nn.Module) -> None:
        """Raise ``ValueError`` if these two models cannot be distilled with this method."""

    def build_adapters(self, student: nn.Module, teacher: nn.Module) -> Optional[nn.Module]:
        """Trainable modules between student and teacher, or None."""
        return None

    @abstractmethod
    def losses(
        self, student: Recorder, teacher: Teacher, inputs: Tensor, data_samples: Optional[list]
    ) -> LossDict:
        """Compute the extra losses of one batch. Runs in float32, outside autocast.

        Args:
            student (Recorder): What the student computed, by the names in :attr:`student_records`.
            teacher (Teacher): The teacher; ``teacher.features`` and ``teacher.head`` run what is
                needed of it.
            inputs (Tensor): The student's input, (B, 3, H, W), normalised and padded.
            data_samples (list): The batch's annotations.

        Returns:
            dict: ``loss_*`` name -> scalar tensor, or list of them (one per level).
        """

    # Life of the hook, in the order in which mmengine calls it.

    def before_run(self, runner: Runner) -> None:
        """Build the teacher and the adapters, once the student and its optimizer exist."""
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            raise TypeError(
                f'{type(self).__name__} needs one optimizer, got {type(runner.optim_wrapper).__name__} with '
                f'{sorted(runner.optim_wrapper)}'
            )
        if not isinstance(runner.optim_wrapper, OptimWrapper) or not self.enabled:
            return  # testing or validating only, or every weight is 0
        if self.teacher is not None:
            return  # testing or validating after training: the runner calls this again
        student = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if runner not in _SESSIONS:
            _SESSIONS[runner] = _Session(student)
        session = _SESSIONS[runner]
        self.teacher = session.teacher(self.teacher_options)
        session.records.watch(self.student_records)
        self.teacher.records.watch(self.teacher_records)
        self.check(student, self.teacher.model)
        with preserved_rng():
            self.adapters = self.build_adapters(student, self.teacher.model)
        if self.adapters is not None:
            self.adapters.to(next(student.parameters()).device).train()
            _synchronise(self.adapters)
            _optimise(self.adapters, runner)
        same = [h for h in runner.hooks if type(h) is type(self)]
        self._key = type(self).__name__ + (f'_{same.index(self)}' if len(same) > 1 else '')

    def before_train(self, runner: Runner) -> None:
        """Say so if the runner never called :meth:`before_run` with an optimizer, as some strategies do, or counts
        no epochs."""
        limited = self.begin or self.end is not None or self.warmup
        if limited and self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError(
                f'{type(self).__name__} counts begin={self.begin}, end={self.end} and warmup={self.warmup} in epochs, '
                'and an IterBasedTrainLoop stays in epoch 0: give them in iterations, with by_epoch=False'
            )
        if self.enabled and self.teacher is None:
            raise RuntimeError(
                f'{type(self).__name__} was given no optimizer before the run: use the stock Runner'
            )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Optional[Any] = None
    ) -> None:
        """Attach to the student for this iteration."""
        if self.teacher is None:
            return
        now = runner.epoch if self.by_epoch else runner.iter
        if now < self.begin or (self.end is not None and now >= self.end):
            return
        factor = min(1.0, (now - self.begin) / self.warmup) if self.warmup else 1.0
        _SESSIONS[runner].arm(self, factor)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Optional[Any] = None,
        outputs: Optional[dict] = None,
    ) -> None:
        """Detach from the student."""
        if self.teacher is not None:
            _SESSIONS[runner].disarm()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save the adapters beside the student's weights."""
        if self.adapters is not None:
            state = {k: v.detach().cpu() for k, v in self.adapters.state_dict().items()}
            checkpoint.setdefault(ADAPTERS_KEY, {})[self._key] = state

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Load the adapters, when training goes on from a checkpoint that has them."""
        if self.adapters is None:
            return
        if self._key in checkpoint.get(ADAPTERS_KEY, {}):
            self.adapters.load_state_dict(checkpoint[ADAPTERS_KEY][self._key])
        else:
            print_log(
                f'the checkpoint holds no adapters of {self._key}: they start anew',
                'current',
                level=30,
            )


def _synchronise(adapters: nn.Module) -> None:
    """Make adapters equal on all processes, and keep their gradients equal by averaging them in the backward pass."""
    if not is_distributed():
        return
    for tensor in [*adapters.parameters(), *adapters.buffers()]:
        dist.broadcast(tensor.data, 0)

    def average(grad: Tensor) -> Tensor:
        grad = grad / dist.get_world_size()
        dist.all_reduce(grad)
        return grad

    for parameter in adapters.parameters():
        parameter.register_hook(average)


def _optimise(adapters: nn.Module, runner: Runner) -> None:
    """Add the adapters to the student's optimizer and its schedulers, as one group with the base settings."""
    wrapper, optimizer = runner.optim_wrapper, runner.optim_wrapper.optimizer
    # With several groups (paramwise_cfg) mmengine tracks the base settings in an entry of their own.
    base = wrapper.base_param_settings or optimizer.param_groups[0]
    group = {k: copy.copy(v) for k, v in base.items() if k not in ('params', 'param_names')}
    if base is wrapper.base_param_settings and (runner.auto_scale_lr or {}).get('enable'):
        # mmengine scales the learning rate of every group, and leaves the base settings as they are.
        images = runner.world_size * runner.train_dataloader.batch_size
        for key in group.keys() & {'lr', 'initial_lr'}:
            group[key] *= images / runner.auto_scale_lr['base_batch_size']
    optimizer.add_param_group(dict(group, params=list(adapters.parameters())))
    position = len(optimizer.param_groups) - 1
    schedulers = runner.param_schedulers or []
    if isinstance(schedulers, dict):
        schedulers = [s for several in schedulers.values() for s in several]
    for scheduler in schedulers:
        if hasattr(scheduler, 'base_values'):
            scheduler.base_values.insert(position, group[f'initial_{scheduler.param_name}'])
        if hasattr(scheduler, 'min_values'):
            scheduler.min_values.insert(position, scheduler.min_values[0])


def loss_weight(term: Optional[dict]) -> float:
    """The weight of an optional loss term, 0 if the term is off."""
    return 0.0 if term is None else float(term.get('weight', 1.0))
