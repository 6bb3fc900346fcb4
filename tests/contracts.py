"""How the contract tests find what is registered, and the small instance of it that its paper's
test provides."""

import importlib.util
from functools import cache
from pathlib import Path

from mmextra import registry

HERE = Path(__file__).parent


@cache
def test_module(module: str):
    """The test module that mirrors ``mmextra.<wing>.<paper>``."""
    _, wing, paper = module.split('.')[:3]
    path = HERE / wing / f'test_{paper}.py'
    if not path.is_file():
        raise FileNotFoundError(f'{module} has no test: expected {path.relative_to(HERE.parent)}')
    spec = importlib.util.spec_from_file_location(f'contract_{wing}_{paper}', path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def registered(variable: str) -> dict:
    """Name -> module of everything in one registry (``'MODELS'``, ``'HOOKS'``, ...)."""
    return registry.component_index().get(variable, {})


def tiny(variable: str, name: str) -> dict:
    """The arguments of a small instance of a registered class, from its test's ``TINY``."""
    module = registered(variable)[name]
    found = getattr(test_module(module), 'TINY', {})
    if name not in found:
        raise KeyError(
            f'{name} is registered by {module}; give the arguments of a small instance of it in TINY '
            f'in {test_module(module).__file__}'
        )
    return found[name]
