"""Reading checkpoints safely, and the key layouts of the authors' own checkpoint files."""

import re
from pathlib import Path
from typing import Callable, Dict, Mapping, Optional

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from mmextra.engine.safe_globals import declare_safe_globals
from mmextra.registry import PACKAGE, WEIGHT_INITIALIZERS, import_component

StateDict = Dict[str, Tensor]
# A layout maps the authors' state dict to the keys of an mm checkpoint (`backbone.*`, `head.*`,
# ...).
Layout = Callable[[StateDict], StateDict]
_LAYOUTS: Dict[str, Layout] = {}


def read_checkpoint(path: str) -> dict:
    """Read a checkpoint file without executing anything it may hold.

    Args:
        path (str): A local path, or any prefix that mmengine's loader knows (``http://``,
            ``torchvision://``, ...). What has a prefix is left to that loader, which reads plain data alone from
            torch 2.6 on.

    Returns:
        dict: The content of the file, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is cut short or is no checkpoint, or if it holds a pickled class
            beyond tensors, numpy arrays and mmengine's log histories.
    """
    if '://' in path:
        return CheckpointLoader.load_checkpoint(path, map_location='cpu')
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f'there is no checkpoint {path!r}')
    declare_safe_globals()  # the fork's mmengine takes them back after each file that it loads
    try:
        checkpoint = torch.load(file, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises whatever a damaged pickle happens to cause
        # A whole name, that is: not where the file is cut.
        refused = re.search(r'GLOBAL ([\w.]+\w)\b(?!\.)', str(error))
        if refused:
            raise ValueError(
                f'{path} is refused: it holds a pickled {refused[1]}, and only tensors and plain data are '
                'read from a checkpoint. Save its state dict alone, where you trust the file.'
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f'{path} cannot be read: it is cut short, damaged or no checkpoint ({reason}). '
            'Compare its size or checksum with the original.'
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} holds a {type(checkpoint).__name__}, expected a dict of weights')
    return checkpoint


def state_dict_of(checkpoint: Mapping) -> StateDict:
    """The weights of a checkpoint, whichever of the usual wrappings it has (``state_dict``, ``model``, ``module.``)."""
    for key in ('state_dict', 'model', 'module'):
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    state = {k: v for k, v in checkpoint.items() if isinstance(v, Tensor)}
    if state and all(k.startswith('module.') for k in state):
        state = {k[len('module.') :]: v for k, v in state.items()}
    if not state:
        raise ValueError(
            f'no weights found; top-level keys: {", ".join(map(str, list(checkpoint)[:10]))}'
        )
    return state


def register_layout(paper: str) -> Callable[[Layout], Layout]:
    """Decorator that names the function which maps a paper's official keys to ours.

    Args:
        paper (str): The paper's name, the same as its module's.
    """

    def register(layout: Layout) -> Layout:
        _LAYOUTS[paper] = layout
        return layout

    return register


def get_layout(paper: str) -> Layout:
    """Return the official key layout of a paper, importing the paper's module if needed.

    Raises:
        KeyError: If no paper of that name has a layout.
    """
    if paper not in _LAYOUTS:
        for path in PACKAGE.glob(f'*/{paper}*'):
            if path.stem == paper:
                import_component(f'mmextra.{path.parent.name}.{paper}')
    if paper not in _LAYOUTS:
        known = {
            path.relative_to(PACKAGE).parts[1].removesuffix('.py')
            for path in PACKAGE.rglob('*.py')
            if '\n@register_layout(' in path.read_text('utf-8')
        }
        raise KeyError(
            f'no official checkpoint layout is known for {paper!r}; known: {", ".join(sorted(known))}'
        )
    return _LAYOUTS[paper]


def load_official(module: nn.Module, state: StateDict, layout: str) -> None:
    """Load weights in the authors' layout into ``module``, accounting for every key.

    Args:
        module (nn.Module): A whole model, or its backbone or head alone.
        state (dict): The authors' state dict.
        layout (str): Name of the paper that the layout belongs to.

    Raises:
        ValueError: If a key is missing or left over, or if a shape differs that the model does not know to fit (as it
            does with position maps of another image size). The message lists them.
    """
    mapped = get_layout(layout)(dict(state))
    own = module.state_dict()
    if not any(k in own for k in mapped):  # `module` is one part of the model, say its backbone
        parts = sorted({k.partition('.')[0] for k in mapped})
        inner = {
            part: {k[len(part) + 1 :]: v for k, v in mapped.items() if k.startswith(f'{part}.')}
            for part in parts
        }
        part = max(parts, key=lambda p: len(inner[p].keys() & own.keys()), default=None)
        if part is not None and inner[part].keys() & own.keys():
            others = [p for p in parts if p != part]
            if others:
                print_log(
                    f'only `{part}` is loaded; the checkpoint also holds: {", ".join(others)}',
                    'current',
                )
            mapped = inner[part]
    problems = [f'missing: {k}' for k in own if k not in mapped]
    problems += [f'left over: {k}' for k in mapped if k not in own]
    if not problems:
        try:
            module.load_state_dict(mapped)  # models fit position maps of another image size
        except RuntimeError as error:
            problems = [line.strip() for line in str(error).splitlines()[1:]]
    if problems:
        more = f' (+{len(problems) - 8} more)' if len(problems) > 8 else ''
        raise ValueError(
            f'the weights do not fit {type(module).__name__} (layout {layout!r}): '
            f'{"; ".join(problems[:8])}{more}. Check that the arguments of the model are those of the file.'
        )


def layout_of(module: nn.Module) -> Optional[str]:
    """The ``official_layout`` that a module, or a part of it, declares."""
    layouts = (getattr(part, 'official_layout', None) for part in module.modules())
    return next((layout for layout in layouts if isinstance(layout, str)), None)


@WEIGHT_INITIALIZERS.register_module()
class OfficialCheckpoint:
    """Initialise a model from the authors' own checkpoint file, in the authors' key layout.

    The load is strict: every key of the file and of the model is accounted for, or a ``ValueError`` lists what is not.
    Position maps of another image size are interpolated, as they are when an mm checkpoint is loaded. In a list of
    ``init_cfg``, put it last: mmengine applies them in their order.

    Args:
        checkpoint (str): Path of the file.
        layout (str, optional): Paper whose key layout the file has. Defaults to the one that the
            model declares.

    Example:
        >>> init_cfg = dict(type='mmextra.OfficialCheckpoint', checkpoint='d1_224_84.2.pth.tar')
    """

    def __init__(self, checkpoint: str, layout: Optional[str] = None) -> None:
        self.checkpoint = checkpoint
        self.layout = layout

    def __call__(self, module: nn.Module) -> None:
        layout = self.layout or layout_of(module)
        if layout is None:
            raise ValueError(
                f'{type(module).__name__} declares no official checkpoint layout: pass `layout=`'
            )
        load_official(module, state_dict_of(read_checkpoint(self.checkpoint)), layout)
        for child in module.modules():  # their own initialisation would follow and undo the load
            if isinstance(child, BaseModule):
                child._is_init = True
            elif hasattr(child, 'init_weights'):  # mmcv's ConvModule; mmengine asks for the same
                child.is_init = True  # type: ignore[assignment]
        print_log(
            f'loaded {self.checkpoint} into {type(module).__name__} (layout {layout!r})', 'current'
        )

    def _get_init_info(self) -> str:
        """What mmengine writes into its initialisation log."""
        return f'{type(self).__name__}: load from {self.checkpoint}'


def is_checkpoint_init(init_cfg) -> bool:
    """Whether an ``init_cfg`` loads a checkpoint, so that a module's own initialisation must not touch the weights."""
    cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    return any(
        cfg and str(cfg.get('type')).rpartition('.')[2] in ('Pretrained', 'OfficialCheckpoint')
        for cfg in cfgs
    )
