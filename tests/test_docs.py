"""What the documentation is made of, without building it: `make docs` does that."""

import ast
import importlib.util
import inspect
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(p for p in (ROOT / 'mmextra').rglob('*.py') if '.mim' not in p.parts)
PAGES = [
    p
    for p in (*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), *ROOT.glob('docs/guides/*.md'))
    if p.name not in ('model_zoo.md', 'benchmarks.md')
]
ROLES = ('class', 'func', 'meth', 'mod', 'attr', 'obj', 'data', 'exc', 'ref', 'doc')


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.fixture(scope='module')
def complaints():
    """A function that reads a docstring as Sphinx will, and returns what docutils has to say."""
    napoleon = pytest.importorskip('sphinx.ext.napoleon')
    from docutils import nodes
    from docutils.frontend import get_default_settings
    from docutils.parsers.rst import Directive, Parser, directives, roles
    from docutils.readers.standalone import Reader
    from docutils.utils import new_document

    def role(name, rawtext, text, lineno, inliner, options=None, content=None):
        return [nodes.literal(rawtext, text)], []

    class Anything(Directive):
        has_content, optional_arguments, final_argument_whitespace = True, 9, True

        def run(self):
            return []

    for known in ROLES:
        roles.register_local_role(known, role)
        roles.register_local_role(f'py:{known}', role)
    for known in ('code-block', 'versionadded', 'deprecated'):
        directives.register_directive(known, Anything)
    config = napoleon.Config(napoleon_use_ivar=True)
    settings = get_default_settings(Parser, Reader)
    settings.report_level, settings.halt_level = 2, 5

    def read(docstring, what):
        settings.warning_stream = io.StringIO()
        document = new_document('docstring', settings)
        text = str(napoleon.GoogleDocstring(inspect.cleandoc(docstring), config, what=what))
        Parser().parse(text, document)
        document.transformer.add_transforms(Reader().get_transforms())
        document.transformer.apply_transforms()
        return settings.warning_stream.getvalue()

    return read


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_docstrings_are_valid(path, complaints):
    tree = ast.parse(path.read_text('utf-8'))
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    assert ast.get_docstring(tree), f'{name_of(path)} does not say what it is'
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, *definitions)) or not ast.get_docstring(node):
            continue
        name = getattr(node, 'name', path.stem)
        said = complaints(
            ast.get_docstring(node), 'class' if isinstance(node, ast.ClassDef) else ''
        )
        assert not said, f'docstring of {name}: {said}'


def test_every_public_module_has_its_place_in_the_api():
    spec = importlib.util.spec_from_file_location('docs_conf', ROOT / 'docs' / 'conf.py')
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    pages = conf.api_pages(ROOT / 'mmextra')
    listed = re.findall(r'automodule:: (\S+)', ''.join(pages.values()))
    assert len(listed) == len(set(listed))
    for path in MODULES:
        parts = path.relative_to(ROOT).with_suffix('').parts
        name = '.'.join(parts).removesuffix('.__init__')
        if len(parts) > 2 and name.count('.') > 1 and not any(p[0] == '_' for p in parts[:-1]):
            assert name in listed
    for name in pages:
        assert name == 'index.md' or f'\n{name[:-3]}\n' in pages['index.md']


def test_a_new_wing_needs_nothing(tmp_path):
    spec = importlib.util.spec_from_file_location('docs_conf', ROOT / 'docs' / 'conf.py')
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    for file in (
        'video/__init__.py',
        'video/_private.py',
        'video/hyrsm/__init__.py',
        'video/hyrsm/a.py',
    ):
        path = tmp_path / 'mmextra' / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('')
    page = conf.api_pages(tmp_path / 'mmextra')['video.md']
    assert re.findall(r'automodule:: (\S+)', page) == [
        'mmextra.video.hyrsm',
        'mmextra.video.hyrsm.a',
    ]


@pytest.mark.parametrize('path', PAGES, ids=name_of)
def test_links_of_pages_lead_somewhere(path):
    text = re.sub(r'```.*?```|`[^`\n]*`', '', path.read_text('utf-8'), flags=re.DOTALL)
    written_later = ('papers/', '../papers/', 'model_zoo.md', '../model_zoo.md', 'api/')
    for target in re.findall(r'\]\(([^)\s#]+)', text):
        if not re.match(r'[a-z]+:', target) and not target.startswith(written_later):
            assert (path.parent / target).exists(), f'{name_of(path)} links to {target}'


def test_contents_pages_list_every_page():
    contents = (ROOT / 'docs' / 'index.md').read_text('utf-8')
    blocks = re.findall(r'```\{toctree\}(.*?)```', contents, re.DOTALL)
    lines = [line for block in blocks for line in block.split('\n')]
    listed = {line for line in lines if line and not line.startswith(':')}
    committed = {
        str(p.relative_to(ROOT / 'docs').with_suffix('')) for p in PAGES if 'docs' in p.parts
    }
    assert committed - {'index'} <= listed
    assert listed - committed == {'papers/index', 'model_zoo', 'api/index', 'benchmarks'}
