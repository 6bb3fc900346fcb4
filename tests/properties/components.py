"""Every registered component, a small instance of it, and what its constructor takes."""

import copy
import inspect
from functools import cache
from typing import Dict, NamedTuple

from config_models import weightless
from contracts import tiny
from mmengine.registry import DefaultScope
from torch import nn

from mmextra import registry


class Sets:
    """What samplers need of a data set of data sets."""

    datasets = [range(4), range(3)]
    cumulative_sizes = [4, 7]

    def __len__(self):
        return 7

    def source_indices(self, seed):
        return range(4)


TEACHER = dict(config=dict(model=dict(type='mmdet.RetinaNet')))
DENSE = dict(num_classes=3, in_channels=8, feat_channels=32, stacked_convs=1)
ANCHORS = dict(type='mmdet.AnchorGenerator', ratios=[1.0], scales=[8], strides=[8, 16, 32, 64, 128])
# Small instances of what no paper's test names in its TINY, or names without the objects that it works on.
MORE = dict(
    ATSSDistHead=dict(DENSE, reg_max=4, anchor_generator=ANCHORS),
    CIFARResNet=dict(depth=8),
    CenterDistanceBBoxCoder=dict(),
    DomainPairDataset={
        side: dict(type='mmextra.DrawnDomains', domain=side, num_images=3, size=32, lazy_init=True)
        for side in ('source', 'target')
    },
    DomainPairSampler=dict(dataset=Sets()),
    FCOSDistHead=dict(DENSE, reg_max=4),
    LocalizationDistillationHook=dict(teacher=TEACHER),
    MultiOptimWrapperConstructor=dict(
        optim_wrapper_cfg=dict(generator=dict(optimizer=dict(type='SGD', lr=0.1)))
    ),
    OfficialCheckpoint=dict(checkpoint='official.pth', layout='volo'),
    RetinaDistHead=dict(DENSE, reg_max=4, anchor_generator=ANCHORS),
    SeedEachEpochHook=dict(seed=1),
    SizePowerSampler=dict(dataset=Sets(), power=0.5, seed=0),
    StepwiseDataParallel=dict(module=nn.Linear(2, 2)),
)
# Whose models a wing is written for.
SCOPES = {
    'mmextra.backbones': 'mmpretrain',
    'mmextra.distill.hgkd': 'mmpretrain',
    'mmextra.distill': 'mmdet',
    'mmextra.det': 'mmdet',
    'mmextra.seg': 'mmseg',
    'mmextra': 'mmengine',
}


class Component(NamedTuple):
    """One registered name."""

    variable: str
    name: str
    module: str

    def __str__(self) -> str:
        return self.name

    @property
    def cls(self) -> type:
        return getattr(registry, self.variable).get(self.name)

    def arguments(self) -> dict:
        """Arguments that are valid."""
        return copy.copy(_arguments(self))

    def build(self, **arguments):
        """Make an instance; models without memory."""
        scope = next(host for part, host in SCOPES.items() if self.module.startswith(part))
        with DefaultScope.overwrite_default_scope(scope):
            if self.variable != 'MODELS':
                return self.cls(**copy.deepcopy(arguments))
            with weightless():
                return self.cls(**copy.deepcopy(arguments))

    def own(self) -> Dict[str, inspect.Parameter]:
        """The arguments that this package names, by the class itself or by those that it inherits from."""
        return _signature(self.cls)[0]

    def handed_on(self) -> Dict[str, inspect.Parameter]:
        """The arguments of the host's class, of which it is a kind."""
        return _signature(self.cls)[1]


@cache
def _arguments(component: Component) -> dict:
    found = MORE.get(component.name)
    if found is None:
        found = tiny(component.variable, component.name)
    lazy = 'lazy_init' in component.handed_on()  # data sets of files that are not there
    found = dict(found, lazy_init=True) if lazy else dict(found)
    found.pop('type', None)
    return found


@cache
def _signature(cls: type):
    own: dict = {}
    handed_on: dict = {}
    for base in cls.__mro__:
        init = vars(base).get('__init__')
        if not inspect.isfunction(init):
            continue
        found = own if base.__module__.startswith('mmextra.') else handed_on
        parameters = list(inspect.signature(init).parameters.values())[1:]
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                found.setdefault(p.name, p)
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return own, handed_on


def components() -> list:
    """All of them, wing by wing."""
    found = [
        Component(variable, name, module)
        for variable, names in registry.component_index().items()
        for name, module in names.items()
    ]
    return sorted(found, key=lambda c: (c.module, c.name))
