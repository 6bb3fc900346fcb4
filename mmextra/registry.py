"""Child registries, scope ``mmextra``, of every mmengine root registry.

mmengine imports this module by itself the first time a config names ``type='mmextra.X'``. The
module that defines ``X`` is imported only then, so a component costs nothing until it is used and
needs no host but its own.
"""

import ast
import difflib
import functools
from importlib import import_module
from pathlib import Path
from typing import Dict, Optional, Type

from mmengine import registry as root
from mmengine.config import utils as config_utils
from mmengine.registry import DefaultScope, Registry
from mmengine.utils import is_installed

from mmextra.engine.arguments import checked
from mmextra.engine.safe_globals import declare_safe_globals

PACKAGE = Path(__file__).parent

# The packages that components may need, and the extra that brings each: import name -> extra of
# ``pip install``.
HOSTS = dict(
    mmcv='all',
    mmdet='det',
    mmseg='seg',
    mmpretrain='pretrain',
    transformers='language',
    faiss='retrieval',
)


@functools.cache
def component_index() -> Dict[str, Dict[str, str]]:
    """Find where every component is defined, without importing anything.

    Reads the package's sources for classes and functions decorated with
    ``@REGISTRY.register_module()``.

    Returns:
        dict: For each registry variable of this module (``'MODELS'``, ...), registered name ->
            module.
    """
    index: Dict[str, Dict[str, str]] = {}
    for path in sorted(PACKAGE.rglob('*.py')):
        relative = path.relative_to(PACKAGE)
        if relative.parts[0] == '.mim' or '.register_module(' not in (
            source := path.read_text('utf-8')
        ):
            continue
        module = '.'.join(('mmextra', *relative.with_suffix('').parts)).removesuffix('.__init__')
        for node in ast.parse(source).body:
            for call in getattr(node, 'decorator_list', ()):
                if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                    continue
                if call.func.attr != 'register_module' or not isinstance(call.func.value, ast.Name):
                    continue
                names = index.setdefault(call.func.value.id, {})
                for name in _registered_names(node, call):
                    if names.setdefault(name, module) != module:
                        raise RuntimeError(
                            f'{name} is registered twice in {call.func.value.id}: '
                            f'in {names[name]} and in {module}'
                        )
    return index


def _registered_names(node, call: ast.Call) -> list:
    """The names under which one decorated definition is registered."""
    given = [*call.args[:1], *(k.value for k in call.keywords if k.arg == 'name')]
    if not given:
        return [node.name]
    names = ast.literal_eval(given[0])
    return [names] if isinstance(names, str) else list(names or [node.name])


def import_component(module: str):
    """Import the module of a component.

    Raises:
        ModuleNotFoundError: If a host package that the module needs is not installed; the message
            says how to get it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or '').partition('.')[0]
        if package not in HOSTS:
            raise
        raise ModuleNotFoundError(
            f"{module} needs {package}, which is not installed: pip install 'mmextra[{HOSTS[package]}]'",
            name=error.name,
        ) from error


class LazyRegistry(Registry):
    """A child registry that imports the module of a component when the component is first asked for."""

    def __init__(self, variable: str) -> None:
        parent = getattr(root, variable)
        # A location keeps mmengine from looking for `mmextra.utils.register_all_modules`.
        super().__init__(parent.name, parent=parent, scope='mmextra', locations=['mmextra'])
        self.variable = variable

    def _register_module(self, module: Type, *args, **kwargs) -> None:
        # Every class of this package refuses wrong arguments in the same words.
        super()._register_module(
            checked(module) if isinstance(module, type) else module, *args, **kwargs
        )

    def get(self, key: str) -> Optional[Type]:
        """Return the component registered under ``key``, or what the parent registries hold under
        it.

        Raises:
            KeyError: If no registry knows the name; the message lists the nearest names.
            ModuleNotFoundError: If the host package of the component is not installed.
        """
        scope, name = self.split_scope_key(key)
        if scope not in (None, self.scope):
            return super().get(key)
        index = component_index().get(self.variable, {})
        if name not in self._module_dict and name in index:
            import_component(index[name])
        if name in self._module_dict:
            return self._module_dict[name]
        if scope is None:
            # The host before the root: mmdet's `LoadAnnotations` and mmcv's bear the same name.
            for registry in (self._enclosing_host(), self.parent):
                if registry is not None and name in registry._module_dict:
                    return registry._module_dict[name]
        if '.' in name:  # the full path of a class, as configs in pure Python style write it
            return super().get(key)
        known = sorted({*index, *self._module_dict})
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        elsewhere = [
            v for v, names in component_index().items() if name in names and v != self.variable
        ]
        hint = (
            f'did you mean {" or ".join(near)}?'
            if near
            else f'registered: {", ".join(known) or "nothing yet"}.'
        )
        if elsewhere:
            hint = f'it is one of {elsewhere[0]}, not of {self.variable}.'
        raise KeyError(f'mmextra has no {self.name} named {name!r}; {hint}')

    def _enclosing_host(self) -> Optional[Registry]:
        """The registry of the host that a config of ours is built for.

        ``_base_ = 'mmextra::...'`` marks what it inherits with our scope, host components too.
        These are looked up in the default scope around ours, the host's.
        """
        for instance in reversed(DefaultScope._instance_dict.values()):
            if instance.scope_name in HOSTS:
                import_module(f'{instance.scope_name}.registry')
            host = self.parent.children.get(instance.scope_name)
            if host is not None and host is not self:
                host.import_from_location()
                return host
        return None

    def import_all(self) -> Dict[str, Type]:
        """Import every component of this registry and return name -> class."""
        for module in sorted(set(component_index().get(self.variable, {}).values())):
            import_component(module)
        return dict(self._module_dict)


RUNNERS = LazyRegistry('RUNNERS')
RUNNER_CONSTRUCTORS = LazyRegistry('RUNNER_CONSTRUCTORS')
LOOPS = LazyRegistry('LOOPS')
HOOKS = LazyRegistry('HOOKS')
LOG_PROCESSORS = LazyRegistry('LOG_PROCESSORS')
STRATEGIES = LazyRegistry('STRATEGIES')
DATASETS = LazyRegistry('DATASETS')
DATA_SAMPLERS = LazyRegistry('DATA_SAMPLERS')
TRANSFORMS = LazyRegistry('TRANSFORMS')
MODELS = LazyRegistry('MODELS')
MODEL_WRAPPERS = LazyRegistry('MODEL_WRAPPERS')
WEIGHT_INITIALIZERS = LazyRegistry('WEIGHT_INITIALIZERS')
OPTIMIZERS = LazyRegistry('OPTIMIZERS')
OPTIM_WRAPPERS = LazyRegistry('OPTIM_WRAPPERS')
OPTIM_WRAPPER_CONSTRUCTORS = LazyRegistry('OPTIM_WRAPPER_CONSTRUCTORS')
PARAM_SCHEDULERS = LazyRegistry('PARAM_SCHEDULERS')
METRICS = LazyRegistry('METRICS')
EVALUATOR = LazyRegistry('EVALUATOR')
TASK_UTILS = LazyRegistry('TASK_UTILS')
FUNCTIONS = LazyRegistry('FUNCTIONS')
VISUALIZERS = LazyRegistry('VISUALIZERS')
VISBACKENDS = LazyRegistry('VISBACKENDS')
INFERENCERS = LazyRegistry('INFERENCERS')

# Lets configs say `_base_ = 'mmextra::ld/...'`: mmengine knows only the packages of this table.
config_utils.MODULE2PACKAGE.setdefault('mmextra', 'mmextra')
# The fork ships mmseg under another distribution name than that table has; the module's name finds it.
if not is_installed('mmsegmentation'):
    config_utils.MODULE2PACKAGE['mmseg'] = 'mmseg'
declare_safe_globals()
