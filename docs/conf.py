"""Sphinx configuration. The pages of papers, model zoo and API are written from the sources here."""

import importlib.util
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

from mmextra import __version__ as release  # noqa: E402, F401

project = 'mmextra'
author = 'mmextra contributors'
copyright = author

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = 'mmextra'

# `[text](#heading)` links, as READMEs have them.
myst_heading_anchors = 3

autodoc_member_order = 'bysource'
autodoc_typehints = 'none'  # types stand in the docstrings
autodoc_inherit_docstrings = False  # the hosts' docstrings belong to the hosts' pages
autodoc_default_options = {'members': True, 'show-inheritance': True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True

FLOORS = {
    'ops': 'Pure tensor functions',
    'structures': 'Data containers',
    'engine': 'Hooks, checkpoints and processes',
    'backbones': 'Backbones',
    'distill': 'Distillation',
    'det': 'Detection',
    'seg': 'Segmentation',
}


def api_pages(package: Path) -> dict:
    """One page for each folder of the package: file name -> Markdown.

    Every module is on its folder's page, so that a new module, or a new wing, needs nothing here.
    """
    folders = sorted(p.parent for p in package.glob('*/__init__.py'))
    order = [*FLOORS, *(f.name for f in folders if f.name not in FLOORS)]
    pages = {}
    for folder in sorted(folders, key=lambda f: order.index(f.name)):
        blocks = []
        for path in sorted(folder.rglob('*.py')):
            is_package = path.name == '__init__.py'
            parts = (path.parent if is_package else path.with_suffix('')).relative_to(
                package.parent
            )
            if path == folder / '__init__.py' or any(part.startswith('_') for part in parts.parts):
                continue
            # A package only hands on what its modules define.
            options = ':no-members:\n' if is_package else ''
            name = '.'.join(parts.parts)
            blocks.append(
                f'## {".".join(parts.parts[2:])}\n\n'
                f'```{{eval-rst}}\n.. automodule:: {name}\n   {options}```\n'
            )
        title = FLOORS.get(folder.name, folder.name.capitalize())
        body = '\n'.join(blocks) or 'Nothing yet.\n'
        pages[f'{folder.name}.md'] = f'# {title}\n\nPackage `mmextra.{folder.name}`.\n\n{body}'
    contents = '\n'.join(name.removesuffix('.md') for name in pages)
    registry = '```{eval-rst}\n.. automodule:: mmextra.registry\n```\n'
    pages['registry.md'] = f'# Registries\n\n{registry}'
    pages['index.md'] = f'# API\n\n```{{toctree}}\n:maxdepth: 1\n\nregistry\n{contents}\n```\n'
    return pages


def write_generated_pages() -> None:
    """Write everything under docs/ that is not committed."""
    spec = importlib.util.spec_from_file_location('model_zoo', ROOT / 'tools' / 'model_zoo.py')
    zoo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(zoo)
    zoo.write_docs(ROOT, zoo.find_papers(ROOT))
    pages = api_pages(ROOT / 'mmextra')
    (DOCS / 'api').mkdir(exist_ok=True)
    for old in (DOCS / 'api').glob('*.md'):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        zoo.write(DOCS / 'api' / name, text)


def setup(app) -> None:
    app.connect('config-inited', lambda app, config: write_generated_pages())
