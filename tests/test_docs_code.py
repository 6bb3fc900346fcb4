"""Every code block of the documentation does what it shows.

Configs are read with what they inherit; the types that they name are looked up, the arguments held against the
signatures, models and hooks built. Other Python runs in a scratch folder. Of commands the script or target must exist,
the options be those of its parser, and the configs be there. Words in capitals (CONFIG, STUDENT.pth) stand for
something of the reader's.
"""

import ast
import importlib.util
import inspect
import pickle
import re
import subprocess
import sys
import textwrap
from argparse import ArgumentParser, Namespace
from functools import cache, partial
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional

import cv2
import numpy as np
import pytest
import torch
from config_models import model_of, weightless
from mmengine import registry as root
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch.distributed.run import get_args_parser
from training import forget_instances

from mmextra import registry as ours

markdown_it = pytest.importorskip('markdown_it')

ROOT = Path(__file__).parents[1]
GENERATED = ('model_zoo.md', 'benchmarks.md')
PAGES = [
    page
    for pattern in (
        'README.md',
        'CONTRIBUTING.md',
        'docs/*.md',
        'docs/guides/*.md',
        'configs/*/README.md',
    )
    for page in sorted(ROOT.glob(pattern))
    if page.name not in GENERATED
]
PLACEHOLDER = re.compile(r'[A-Z][A-Z0-9_]*(\.\w+)?')
HOSTS = ('mmdet', 'mmseg', 'mmpretrain')
REGISTRIES = [name for name, value in vars(ours).items() if isinstance(value, ours.LazyRegistry)]


class Block(NamedTuple):
    """A piece of code of a page: ``kind`` is the language of a fence, ``'bash'`` of what is indented or in a line."""

    page: Path
    line: int
    kind: str
    code: str

    @property
    def name(self) -> str:
        return f'{self.page.relative_to(ROOT)}:{self.line}'


@cache
def blocks_of(page: Path) -> List[Block]:
    """The pieces of code of a page, in their order."""
    found = []
    for token in markdown_it.MarkdownIt().enable('table').parse(page.read_text('utf-8')):
        line = token.map[0] + 1 if token.map else 0
        if token.type == 'fence':
            found.append(Block(page, line, token.info.strip(), token.content))
        elif token.type == 'code_block':
            found.append(Block(page, line, 'bash', token.content))
        elif token.type == 'inline':
            codes = [child.content for child in token.children if child.type == 'code_inline']
            found += [Block(page, line, 'bash', code) for code in codes if is_command(code)]
    return found


def is_command(code: str) -> bool:
    """Whether code within a line of text is a whole command, not the name of one."""
    words = code.split()
    if words[:1] == ['python']:
        return len(words) > 1 and words[1].startswith('tools/')
    if words[:1] == ['mim']:
        return len(words) > 3
    return words[:1] == ['make'] and len(words) == 2 or words[:2] == ['pip', 'install']


def blocks(kind: str) -> list:
    """All pieces of one kind as parameters of a test."""
    found = [b for page in PAGES for b in blocks_of(page) if b.kind == kind]
    return [pytest.param(b, id=b.name) for b in found]


def test_every_kind_of_block_is_tested():
    kinds = {b.kind for page in PAGES for b in blocks_of(page)}
    assert kinds - {'bibtex'} == {'python', 'bash'} | {k for k in kinds if k.startswith('{')}
    assert len(blocks('python')) > 50 and len(blocks('bash')) > 50


# Python


def without_elision(code: str) -> str:
    """The code without the ``...`` that stand for further arguments."""
    return re.sub(r'(,\s*|(?<=\())\.\.\.(?=\s*\))', '', code)


def is_config(code: str) -> bool:
    """Whether code does nothing but assign, and call nothing but ``dict``."""
    tree = ast.parse(without_elision(code))
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return all(isinstance(node, (ast.Assign, ast.Expr)) for node in tree.body) and all(
        isinstance(called, ast.Name) and called.id == 'dict' for called in calls
    )


def split(configs: bool) -> list:
    return [p for p in blocks('python') if is_config(p.values[0].code) == configs]


@cache
def read(path: str) -> Config:
    """A config file, read once."""
    return Config.fromfile(path)


@pytest.fixture
def written(tmp_path):
    """A function that writes the config blocks of a page down to one, and returns that one's path.

    A first line ``# NAME.py`` says what the block's file is called, so that others can inherit from it.
    """

    def write(block: Block) -> Path:
        for i, other in enumerate(blocks_of(block.page)):
            if other.kind == 'python' and is_config(other.code):
                named = re.match(r'# (\w+\.py)\n', other.code)
                path = tmp_path / (named[1] if named else f'block_{i}.py')
                path.write_text(without_elision(other.code))
            if other is block:
                return path
        raise AssertionError(block.name)

    return write


def own_values(block: Block) -> dict:
    """What the block itself says, without what it inherits."""
    values = {}
    exec(re.sub(r'\{\{.*?\}\}', 'None', without_elision(block.code)), values)
    return {k: v for k, v in values.items() if k not in ('__builtins__', '_base_')}


def scope_of(cfg: Config) -> Optional[str]:
    """The host that a config is for, None for a fragment."""
    return cfg.get('default_scope')


@cache
def find(name: str, scope: Optional[str]) -> Optional[type]:
    """What a name stands for, in any registry."""
    scoped = (
        [name] if '.' in name else [f'{s}.{name}' for s in ((scope,) if scope else HOSTS)] + [name]
    )
    for registry in REGISTRIES:
        for key in scoped:
            if key.startswith('mmextra.'):
                if key[8:] in ours.component_index().get(registry, {}):
                    return getattr(ours, registry).get(key)
                continue
            try:
                found = getattr(root, registry).get(key)
            except KeyError:
                found = None
            if found is not None:
                return found
    return None


@cache
def accepted(kind: type) -> Optional[set]:
    """The names of the arguments that a class takes, those that it hands to its parent included; None for any name."""
    names = set()
    for owner in kind.__mro__ if inspect.isclass(kind) else [kind]:
        init = vars(owner).get('__init__') if inspect.isclass(owner) else owner
        if init is None:
            continue
        parameters = inspect.signature(init).parameters.values()
        names |= {p.name for p in parameters}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            return names
        if not hands_on(init):
            return None
    return None


def hands_on(init) -> bool:
    """Whether what a constructor does not name goes to the parent's."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(init)))
    except (OSError, TypeError):  # not written in Python
        return False
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return any(
        getattr(call.func, 'attr', '') == '__init__' and any(k.arg is None for k in call.keywords)
        for call in calls
    )


# Read by whoever builds the object, not by the object.
FOR_BUILDERS = {
    *(
        'type',
        '_delete_',
        '_scope_',
        'priority',
        'convert_to_iter_based',
        'requires_grad',
        'constructor',
    ),
    *('optimizer', 'paramwise_cfg', 'generator', 'feat_discriminator', 'out_discriminator'),
}


def check_arguments(own, merged, scope: Optional[str], where: str) -> None:
    """Hold the keys that a block writes into a typed dict against the arguments of the type."""
    if (
        isinstance(own, (list, tuple))
        and isinstance(merged, (list, tuple))
        and len(own) == len(merged)
    ):
        for i, pair in enumerate(zip(own, merged)):
            check_arguments(*pair, scope, f'{where}.{i}')
    if not isinstance(own, dict) or not isinstance(merged, dict):
        return
    name = merged.get('type')
    if isinstance(name, str):
        kind = find(name, scope)
        assert kind is not None, f'{where}: no component is called {name!r}'
        check_names(kind, own, where)
    for key, value in own.items():
        if key in merged:
            check_arguments(value, merged[key], scope, f'{where}.{key}')


def check_names(kind: type, keys, where: str) -> None:
    names = accepted(kind)
    strange = set() if names is None else {k for k in keys if k not in names | FOR_BUILDERS}
    assert not strange, f'{where}: {kind.__name__} takes no {", ".join(sorted(strange))}'


def typed(node, prefix: str) -> Iterator[dict]:
    """The outermost dicts whose type begins so."""
    if isinstance(node, dict):
        if str(node.get('type')).startswith(prefix):
            yield node
        else:
            for value in node.values():
                yield from typed(value, prefix)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from typed(value, prefix)


@pytest.mark.parametrize('block', split(configs=True))
def test_config(block, written):
    cfg = Config.fromfile(written(block))
    own, scope = own_values(block), scope_of(cfg)
    for key, value in own.items():
        assert not isinstance(value, tuple) or len(value) != 1, (
            f'{key} ends in a comma: a tuple of one'
        )
    check_arguments(own, cfg.to_dict(), scope, block.name)
    for expression in ast.parse(
        without_elision(block.code)
    ).body:  # steps of a pipeline, without a name
        if isinstance(expression, ast.Expr):
            steps = eval(ast.unparse(expression))
            for step in steps if isinstance(steps, tuple) else [steps]:
                check_arguments(step, step, scope, block.name)
    if without_elision(block.code) != block.code:
        return
    for hook in typed(own, 'mmextra.'):
        if hook['type'][8:] in ours.component_index()['HOOKS']:
            ours.HOOKS.build(dict(hook))
            config = hook.get('teacher', {}).get('config')
            assert config in (None, ...) or Path(Config._get_cfg_path(config, '')[0]).is_file()
    if scope:
        init_default_scope(scope)
        if 'model' in own:
            with weightless():
                assert sum(p.numel() for p in root.MODELS.build(model_of(cfg)).parameters())
    else:
        build_parts(own)


def build_parts(own: dict) -> None:
    """Build the models of a fragment: a whole classifier, or our components as far as they are complete."""
    init_default_scope('mmpretrain')
    models = ours.component_index()['MODELS']
    whole = own.get('model', {})
    parts = [whole] if whole.get('type') == 'ImageClassifier' else typed(own, 'mmextra.')
    for part in parts:
        if part is whole or part['type'][8:] in models:
            part = {k: v for k, v in part.items() if k != 'init_cfg'}
            with weightless():
                root.MODELS.build(
                    ConfigDict(model_of(Config(dict(model=part, default_scope='mmpretrain'))))
                )


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A working directory with the files that scripts read, and the names that they take for granted."""
    monkeypatch.chdir(tmp_path)
    cv2.imwrite('image.jpg', np.zeros((64, 96, 3), np.uint8))
    with open('DSNet_small_pretrained.pdparams', 'wb') as file:
        pickle.dump(
            {'norm.weight': np.ones(3, np.float32), 'StructuredToParameterName@@': {}}, file
        )
    from mmengine.model import BaseModule

    before = {variable: {*getattr(ours, variable)._module_dict} for variable in REGISTRIES}
    yield dict(pickle=pickle, numpy=np, torch=torch, BaseModule=BaseModule, Config=Config)
    for variable in REGISTRIES:  # what a script registered is gone again
        known, registered = (
            ours.component_index().get(variable, {}),
            getattr(ours, variable)._module_dict,
        )
        for name in {*registered} - {*known} - before[variable]:
            del registered[name]


@pytest.mark.parametrize('block', split(configs=False))
def test_script(block, scratch, tmp_path):
    if 'CHECKPOINT' in block.code:
        scratch.update(small_metr(tmp_path))
    exec(compile(block.code, block.name, 'exec'), scratch)


def small_metr(folder: Path) -> dict:
    """A config of METR, untrained weights of it, and mmdet's functions on the CPU."""
    from mmdet.apis import inference_detector, init_detector

    config = ROOT / 'configs' / 'metr' / 'metr_dino-r18_coco128-bccd_demo.py'
    cfg = read(str(config))
    init_default_scope('mmdet')
    torch.save(dict(state_dict=root.MODELS.build(cfg.model).state_dict()), folder / 'metr.pth')
    return dict(
        CONFIG=str(config),
        CHECKPOINT=str(folder / 'metr.pth'),
        init_detector=partial(init_detector, device='cpu'),
        inference_detector=inference_detector,
    )


# Commands

# Each command writes down the words that it was called with.
RECORDER = """
record() { printf '%s\\0' $(($# + 1)) "${FUNCNAME[1]}" "$@" >> "$RECORD"; }
python() { record "$@"; }
mim() { record "$@"; }
make() { record "$@"; }
pip() { record "$@"; }
torchrun() { record "$@"; }
srun() { record "$@"; }
"""
SHELL_SCRIPTS = sorted(path.name for path in (ROOT / 'tools').glob('*.sh'))


def commands_in(code: str, record: Path) -> List[List[str]]:
    """The commands that a shell runs when it is given the code: loops, variables and braces resolved."""
    scripts = ''.join(f'tools/{name}() {{ record "$@"; }}\n' for name in SHELL_SCRIPTS)
    # Options alone are those of testing.
    code = re.sub(r'(?m)(?<!\\\n)^(?=--)', 'python tools/test.py CONFIG CHECKPOINT ', code)
    record.write_bytes(b'')
    for folder in ('configs', 'tools'):  # for patterns of file names
        (record.parent / folder).symlink_to(ROOT / folder)
    done = subprocess.run(
        ['bash', '-c', f'RECORD={record}\n{RECORDER}{scripts}{code}'],
        cwd=record.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    words, found = record.read_text().split('\0')[:-1], []
    while words:
        count = int(words[0])
        found.append([word.removeprefix('[').removesuffix(']') if is_optional(word) else word
                      for word in words[1 : count + 1]])  # fmt: skip
        words = words[count + 1 :]
    return found


def is_optional(word: str) -> bool:
    """Whether a word is the first or the last one of ``[--option VALUE]``."""
    return word.startswith('[-') or (word.endswith(']') and '[' not in word)


@cache
def load_tool(path: Path):
    """A script as a module; nothing of it runs but its imports."""
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location(f'docs_tool_{path.stem}', path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


class Parsed(Exception):
    """Ends a script once it knows its arguments."""


def arguments_of(script: str, words: List[str], monkeypatch) -> Namespace:
    """What a script's own parser makes of words."""
    parse = ArgumentParser.parse_args

    def parse_and_stop(self, *args, **kwargs):
        raise Parsed(parse(self, *args, **kwargs))

    path = ROOT / script
    assert path.is_file(), f'there is no {script}'
    module = load_tool(path)
    with monkeypatch.context() as patch:
        patch.setattr(ArgumentParser, 'parse_args', parse_and_stop)
        patch.setattr(sys, 'argv', [script, *words])
        try:
            module.main()
        except Parsed as parsed:
            return parsed.args[0]
        except SystemExit:
            pytest.fail(f'{script} does not take {" ".join(words)}')
    raise AssertionError(f'{script} parsed nothing')


def check_command(words: List[str], block: Block, monkeypatch, written) -> None:
    command, *rest = words
    if command == 'make':
        targets = re.findall(r'(?m)^([a-z]+):', (ROOT / 'Makefile').read_text())
        assert [w for w in rest if '=' not in w] and {w for w in rest if '=' not in w} <= {*targets}
    elif command == 'pip':
        check_pip(rest)
    elif command == 'mim':
        check_mim(rest, block, monkeypatch, written)
    elif command in ('python', 'torchrun', 'srun'):
        if command == 'torchrun':
            launched = get_args_parser().parse_args(rest)
            rest = [launched.training_script, *launched.training_script_args]
        elif command == 'srun':
            rest = rest[rest.index('python') + 1 :]
        rest = rest[rest[0] == '-u' :]
        check_configs(arguments_of(rest[0], rest[1:], monkeypatch), block, written)
    else:
        assert (ROOT / command).is_file()
        kind, counts = ('test', 3) if 'test' in command else ('train', 2)
        if 'slurm' in command:
            rest, counts = rest[2:], 2
            rest = [rest[0], *(rest[1:2] if kind == 'test' else ['--work-dir', rest[1]]), *rest[2:]]
        else:
            assert rest[counts - 1].isdigit(), f'{command} needs a number of processes'
            del rest[counts - 1]
        check_configs(arguments_of(f'tools/{kind}.py', rest, monkeypatch), block, written)


def check_pip(words: List[str]) -> None:
    assert words[0] in ('install', 'uninstall')
    extras = {e for word in words for e in re.findall(r'mmextra\[(\w+)\]', word)}
    known = re.search(r'EXTRAS = dict\((.*?)\n\)', (ROOT / 'setup.py').read_text(), re.DOTALL)[1]
    assert extras <= {*re.findall(r'(?m)^    (\w+)=', known), 'all'}


def check_mim(words: List[str], block: Block, monkeypatch, written) -> None:
    command, package, *rest = words
    cli = importlib.import_module(f'mim.commands.{command}').cli
    parsed = cli.make_context(command, [package, *rest]).params
    if command not in ('train', 'test'):
        return
    options = [*parsed['other_args'], '--launcher', parsed['launcher']]
    config = parsed['config']
    if not (ROOT / config).is_file() and not is_readers_own(config, block):
        folder = ROOT / 'configs'
        if package != 'mmextra':
            folder = Path(importlib.import_module(package).__file__).parent / '.mim' / 'configs'
        found = list(folder.rglob(Path(config).name))
        assert len(found) == 1, f'{package} has {len(found)} configs named {config}'
        config = str(found[0])
    checkpoint = [parsed['checkpoint'] or 'CHECKPOINT'] if command == 'test' else []
    args = arguments_of(f'tools/{command}.py', [config, *checkpoint, *options], monkeypatch)
    check_configs(args, block, written)


def is_readers_own(config: str, block: Block) -> bool:
    """Whether a config is a placeholder, or one that the page shows."""
    shown = re.findall(r'(?m)^# (\w+\.py)$', ''.join(b.code for b in blocks_of(block.page)))
    return (
        bool(PLACEHOLDER.fullmatch(config))
        or Path(config).name.startswith('my_')
        or config in shown
    )


def check_configs(args: Namespace, block: Block, written) -> None:
    """Configs that a command names must be there, and what it overrides must be part of them."""
    named = [getattr(args, key, None) or [] for key in ('config', 'configs', 'before')]
    configs = [str(c) for value in named for c in (value if isinstance(value, list) else [value])]
    for config in configs:
        assert (ROOT / config).is_file() or is_readers_own(config, block), f'there is no {config}'
    options: Dict[str, object] = getattr(args, 'cfg_options', None) or {}
    if not isinstance(options, dict):  # handed on to another script
        options = dict(option.split('=', 1) for option in options)
    for config in configs if options else []:
        if (ROOT / config).is_file():
            check_options(read(str(ROOT / config)), options)
            continue
        before = [b for b in blocks_of(block.page) if b.kind == 'python' and is_config(b.code)]
        before = [b for b in before if b.line < block.line and '_base_' in b.code]
        if before and not PLACEHOLDER.fullmatch(config):
            check_options(Config.fromfile(written(before[-1])), options)


def check_options(cfg: Config, options: Dict[str, object]) -> None:
    merged = Config(cfg.to_dict())
    merged.merge_from_dict(options)
    for option in options:
        node = merged.to_dict()
        for key in option.split('.'):
            if isinstance(node, dict) and isinstance(node.get('type'), str):
                kind = find(node['type'], node.get('_scope_') or scope_of(cfg))
                assert kind is not None and key, option
                check_names(kind, [key], option)
            node = node[int(key)] if isinstance(node, list) else node[key]


@pytest.mark.parametrize('block', blocks('bash'))
def test_commands(block, tmp_path, monkeypatch, written):
    found = commands_in(block.code, tmp_path / 'record')
    assert found, 'nothing is run'
    for words in found:
        forget_instances()
        check_command(words, block, monkeypatch, written)


@pytest.mark.parametrize(
    'kind, code, complaint',
    [
        ('python', "model = dict(type='mmextra.VOLOO')", 'VOLOO'),
        ('python', "hook = dict(type='mmextra.KNNAttentionHook', top=1)", 'takes no top'),
        ('python', "_base_ = 'mmdet::gfl/gfl_r51_fpn_1x_coco.py'", 'gfl_r51'),
        ('python', "backbone=dict(type='mmextra.DSNet'),", 'tuple of one'),
        ('python', "model = dict(type='NoSuchHead')", 'NoSuchHead'),
        ('bash', 'python tools/gone.py CONFIG', 'gone'),
        ('bash', 'python tools/train.py CONFIG --workdir x', '--workdir'),
        ('bash', 'mim train mmextra configs/ld/gone.py', 'gone'),
        (
            'bash',
            'mim train mmdet gfl/gfl_r50_fpn_1x_coco.py --cfg-options model.backbon.depth=18',
            'backbon',
        ),
        ('bash', 'make teste', 'teste'),
        ('bash', "pip install 'mmextra[detection]'", 'detection'),
        ('bash', 'no-such-command', 'not found'),
    ],
)
def test_mistakes_are_noticed(kind, code, complaint, tmp_path, monkeypatch, written):
    block = Block(ROOT / 'README.md', 1, kind, code)
    monkeypatch.setitem(globals(), 'blocks_of', lambda page: [block])
    run = partial(test_config, block, written)
    if kind == 'bash':
        run = partial(test_commands, block, tmp_path, monkeypatch, written)
    with pytest.raises(BaseException) as raised:  # pytest.fail is no Exception
        run()
    assert complaint in str(raised.value)
