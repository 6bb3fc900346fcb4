"""The registries: lazy, in every host's config, and clear when a name or a host is missing."""

import ast
import subprocess
import sys

import mmengine.registry as root
import pytest
from mmengine.config import Config
from mmengine.hub import get_config

import mmextra.registry as registry

# Names of mmengine's root registries.
ROOTS = [n for n in dir(root) if n.isupper() and isinstance(getattr(root, n), root.Registry)]


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.mark.parametrize('name', ROOTS)
def test_every_root_registry_has_a_child(name):
    child = getattr(registry, name)
    assert child.scope == 'mmextra' and child.parent is getattr(root, name)


def test_importing_the_package_loads_neither_torch_nor_a_host():
    heavy = "sorted({'torch', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain'} & set(sys.modules))"
    assert python(f'import sys, mmextra; print({heavy})') == '[]'


def test_asking_for_one_component_imports_no_other():
    code = (
        'import sys; from mmengine.registry import HOOKS; '
        "HOOKS.get('mmextra.SeedEachEpochHook'); "
        "print(sorted(m for m in sys.modules if m in ('mmdet', 'mmseg', 'mmpretrain')), "
        "[m for m in sys.modules if m.startswith('mmextra.distill')])"
    )
    assert python(code) == '[] []'


def test_a_missing_host_is_named_with_its_extra():
    code = (
        'import sys; sys.modules["mmdet"] = None\n'
        'from mmengine.registry import HOOKS\n'
        'try: HOOKS.get("mmextra.LocalizationDistillationHook")\n'
        'except ModuleNotFoundError as error: print(error)'
    )
    assert python(code) == (
        "mmextra.distill.ld.hook needs mmdet, which is not installed: pip install 'mmextra[det]'"
    )


@pytest.mark.parametrize('host', ['mmdet', 'mmseg', 'mmpretrain'])
def test_components_are_found_from_every_host(host):
    code = (
        f'from {host}.registry import HOOKS, WEIGHT_INITIALIZERS; '
        "print(HOOKS.get('mmextra.SeedEachEpochHook').__name__, "
        "WEIGHT_INITIALIZERS.get('mmextra.OfficialCheckpoint').__name__)"
    )
    # The fork prints a line of its own first.
    assert python(code).splitlines()[-1] == 'SeedEachEpochHook OfficialCheckpoint'


def test_a_typo_suggests_the_nearest_names():
    with pytest.raises(KeyError, match='did you mean LocalizationDistillationHook'):
        root.HOOKS.get('mmextra.LocalisationDistillationHook')
    with pytest.raises(KeyError, match='it is one of HOOKS, not of MODELS'):
        root.MODELS.get('mmextra.SeedEachEpochHook')


def test_unscoped_names_fall_back_to_the_parent():
    assert registry.WEIGHT_INITIALIZERS.get('Constant') is root.WEIGHT_INITIALIZERS.get('Constant')


def test_configs_of_the_package_can_be_inherited(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text("_base_ = 'mmextra::ld/ld_gfl_shapes_demo.py'\nwork_dir = 'here'\n")
    cfg = Config.fromfile(path)
    assert (
        cfg.work_dir == 'here'
        and cfg.custom_hooks[0].type == 'mmextra.LocalizationDistillationHook'
    )
    assert get_config('mmextra::ld/ld_gfl_shapes_demo.py').model.bbox_head.num_classes == 6
    # mmengine marks what is inherited with the scope it came from; host components still build.
    assert cfg.model._scope_ == 'mmextra'
    root.init_default_scope('mmdet')
    assert type(root.MODELS.build(cfg.model).bbox_head.assigner).__name__ == 'ATSSAssigner'


def test_the_host_goes_before_mmcv_in_configs_that_inherit_ours():
    """mmcv and mmdet both have a `LoadAnnotations`; a detector's pipeline needs mmdet's."""
    cfg = get_config('mmextra::_base_/datasets/shapes_detection.py')
    steps = {step.type: step for step in cfg.train_pipeline}
    root.init_default_scope('mmdet')
    built = root.TRANSFORMS.build(steps['LoadAnnotations'])
    assert type(built).__module__.startswith('mmdet.')
    assert type(root.TRANSFORMS.build(steps['PackDetInputs'])).__module__.startswith('mmdet.')


def test_the_index_knows_what_importing_registers():
    for variable, names in registry.component_index().items():
        found = getattr(registry, variable).import_all()
        assert set(names) <= set(found), variable


def test_floors_of_the_design():
    """Imports run downwards, and no wing imports another."""
    floors = dict(registry=0, version=0, ops=0, structures=1, engine=1, backbones=2)
    for path in registry.PACKAGE.rglob('*.py'):
        own = path.relative_to(registry.PACKAGE).parts[0].removesuffix('.py')
        if own in ('.mim', '__init__'):
            continue
        for node in ast.walk(ast.parse(path.read_text('utf-8'))):
            names = [node.module or ''] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                parts = name.split('.')
                if parts[0] != 'mmextra' or len(parts) < 2 or parts[1] == own:
                    continue
                if own == 'registry' and parts[2:] in (['arguments'], ['safe_globals']):
                    continue  # they import nothing of the package
                assert floors.get(parts[1], 9) < floors.get(own, 3), f'{path} imports {name}'
