"""What the documentation is made of, without building it: `make docs` does that."""

import ast
import importlib.util
import inspect
import io
import itertools
import re
from functools import cache
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


@cache
def load(name):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f'docs_{name}', ROOT / 'docs' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    pages = load('conf').api_pages(ROOT / 'mmextra')
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
    for file in (
        'video/__init__.py',
        'video/_private.py',
        'video/hyrsm/__init__.py',
        'video/hyrsm/a.py',
    ):
        path = tmp_path / 'mmextra' / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('')
    page = load('conf').api_pages(tmp_path / 'mmextra')['video.md']
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


# The method figures

FIGURES = sorted(load('figures').FIGURES)


def test_every_paper_has_a_figure_on_its_page():
    papers = sorted(path.parent.name for path in ROOT.glob('configs/*/metafile.yml'))
    assert FIGURES == papers, 'figures are functions in docs/figures.py'
    for paper in papers:
        page = (ROOT / 'configs' / paper / 'README.md').read_text('utf-8')
        shown = rf'\n\n!\[[^\]]+\]\(../../docs/images/{paper}\.svg\)\n\n'
        assert re.search(shown, page), f'the page of {paper} does not show its figure'


@pytest.mark.parametrize('paper', FIGURES)
def test_figure_is_legible(paper):
    figures = load('figures')
    drawn = figures.FIGURES[paper]()
    file = ROOT / 'docs' / 'images' / f'{paper}.svg'
    assert file.read_text('utf-8') == drawn.svg(), 'not up to date: run `python docs/figures.py`'
    boxes = [box for box in drawn.boxes.values() if box.text]
    for box in boxes:
        assert max(map(figures.text_width, box.text.split('\n'))) < box.width, (
            f'{box.text!r} is cut'
        )
    for one in (*boxes, *drawn.notes):
        left, top, right, bottom = one.edges
        assert left > 0 and top > 0 and right < figures.WIDTH and bottom < drawn.height, one.text
    for one, other in itertools.combinations((*boxes, *drawn.notes), 2):
        (left, top, right, bottom), (left_b, top_b, right_b, bottom_b) = one.edges, other.edges
        apart = right <= left_b or right_b <= left or bottom <= top_b or bottom_b <= top
        assert apart, f'{one.text!r} lies over {other.text!r}'


# Questions and errors

# Said by Python, torch and other packages.
FOREIGN = (
    "No module named '",
    'operator torchvision::nms does not exist',
    "cannot import name 'GenerationMixin' from 'transformers.modeling_utils'",
    'setuptools~=60.2',
    "module 'numpy' has no attribute 'in1d'",
    'libGL.so.1: cannot open shared object file',
    'Weights only load failed',
    'HistoryBuffer',
    'Expected more than 1 value per channel when training',
)


def messages():
    """All messages that the package and the tools raise or log; a NUL stands for each part that varies."""
    others = ('mim.commands.train', 'mmengine.config.utils')
    tools = [*ROOT.glob('tools/*.py'), *(Path(importlib.import_module(m).__file__) for m in others)]
    for path in (*MODULES, *tools):
        for node in ast.walk(ast.parse(path.read_text('utf-8'))):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else '\0' for v in node.values)
                yield ''.join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_errors_in_the_faq_are_those_that_appear():
    page = (ROOT / 'docs' / 'faq.md').read_text('utf-8')
    quoted = [
        q for head in re.findall(r'(?m)^### (.*)', page) for q in re.findall('`([^`]+)`', head)
    ]
    quoted = [q for q in quoted if ' ' in q and not q.startswith(('--cfg-options', *FOREIGN))]
    assert len(quoted) > 25
    known = '\0'.join(messages())
    for message in quoted:
        # Examples stand in the places of what varies: a run of letters between two of them has to agree.
        runs = (message[i : i + 14] for i in range(len(message) - 13))
        assert any(run in known for run in runs), f'nothing says {message!r}'
