"""Write what follows from ``configs/*/metafile.yml`` and the READMEs beside them.

- ``model-index.yml``, which ``mim search`` and ``mmextra::`` configs read;
- the table of papers in ``README.md``, between ``<!-- papers -->`` and ``<!-- /papers -->``;
- ``docs/model_zoo.md`` and ``docs/papers/PAPER.md`` (not committed).

The ``Results`` of a model are the authors', unless its ``Results Source`` is "ours, N seeds".

``--check`` writes nothing and fails where a committed file is not up to date.
"""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Dict, Iterable, List

import yaml

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ('Config', 'Parameters', 'FLOPs', 'Published', 'Ours', 'Weights')
SIZES = (('Parameters', (1e6, 'M')), ('FLOPs', (1e9, 'G')))
# `Results Source` of what was run with this repository: "ours, 3 seeds".
OURS = re.compile(r'ours, (\d+ seeds?\b.*)')
MARKERS = ('<!-- papers -->', '<!-- /papers -->')
LINK = re.compile(r'(!?\[[^\]]*\])\(([^)\s]+)((?:\s+"[^"]*")?)\)')
FENCE = re.compile(r'(^```.*?^```|`[^`\n]*`)', re.MULTILINE | re.DOTALL)


class ZooError(Exception):
    """A metafile or README that its author has to mend."""


class Paper:
    """One folder of ``configs/`` with a metafile.

    Args:
        root (Path): The checkout.
        folder (Path): The paper's folder of configs.

    Raises:
        ZooError: If the metafile names a file that is not there, or lacks a key.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder, self.slug = root, folder, folder.name
        metafile = folder / 'metafile.yml'
        content = yaml.safe_load(metafile.read_text('utf-8')) or {}
        self.models = content.get('Models') or []
        try:
            collection = content['Collections'][0]
            self.name, self.title = collection['Name'], collection['Paper']['Title']
            self.url, self.readme = collection['Paper']['URL'], root / collection['README']
            listed = [model['Config'] for model in self.models]
            names = [model['Name'] for model in self.models]
        except (KeyError, IndexError, TypeError) as error:
            raise ZooError(f'{metafile} lacks {error}') from error
        absent = [p for p in (*listed, collection['README']) if not (root / p).is_file()]
        if absent:
            raise ZooError(f'{metafile} names files that are absent: {", ".join(absent)}')
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ZooError(f'{metafile} names models twice: {", ".join(sorted(twice))}')

    @property
    def wing(self) -> str:
        """The wing that holds the paper's module, an empty string if none does."""
        found = sorted(
            p.parent.name
            for p in (self.root / 'mmextra').glob(f'*/{self.slug}*')
            if p.stem == self.slug
        )
        return found[0] if found else ''

    def results(self, up: str) -> List[List[str]]:
        """The cells of one row for each model.

        Args:
            up (str): The way from the page up to the checkout, say ``'..'``.
        """
        rows = []
        for model in self.models:
            meta = model.get('Metadata') or {}
            figures = '; '.join(
                f'{result["Dataset"]}: {", ".join(f"{k} {v}" for k, v in result["Metrics"].items())}'
                for result in model.get('Results') or []
                if result.get('Metrics')
            )
            run_here = OURS.match(str(meta.get('Results Source')))
            if run_here and figures:
                figures = ('', f'{figures} ({run_here[1]})')
            else:
                figures = (figures, '')
            sizes = [scaled(meta.get(key), unit) for key, unit in SIZES]
            weights = f'[file]({model["Weights"]})' if model.get('Weights') else ''
            config = f'[{model["Name"]}]({up}/{model["Config"]})'
            rows.append([config, *sizes, *figures, weights])
        return rows


def scaled(number, unit) -> str:
    """A number in millions or billions, as the unit says; text as it is."""
    if number is None or isinstance(number, str):
        return number or ''
    divisor, letter = unit
    return f'{number / divisor:.2f} {letter}'


def find_papers(root: Path) -> List[Paper]:
    """All papers, in the order of their folders."""
    folders = [p.parent for p in (root / 'configs').glob('*/metafile.yml')]
    papers = [Paper(root, folder) for folder in sorted(folders)]
    names: Dict[str, str] = {}
    for paper in papers:
        for model in paper.models:
            other = names.setdefault(model['Name'], paper.slug)
            if other != paper.slug:
                raise ZooError(f'{model["Name"]} is a model of both {other} and {paper.slug}')
    return papers


def model_index(papers: List[Paper]) -> str:
    """The content of ``model-index.yml``."""
    lines = [f'  - configs/{paper.slug}/metafile.yml\n' for paper in papers]
    return f'Import:\n{"".join(lines)}' if lines else 'Import: []\n'


def table(papers: List[Paper]) -> str:
    """The table of papers, with links from the root of the checkout."""
    rows = [
        f'| [{paper.name}](configs/{paper.slug}/README.md) | [{paper.title}]({paper.url}) '
        f'| {f"`mmextra.{paper.wing}`" if paper.wing else ""} |\n'
        for paper in sorted(papers, key=lambda p: p.name.lower())
    ]
    return f'| Name | Paper | Wing |\n| --- | --- | --- |\n{"".join(rows)}'


def readme(papers: List[Paper], text: str) -> str:
    """The README with the table between its markers.

    Raises:
        ZooError: If the markers are not there.
    """
    start, end = (text.find(marker) for marker in MARKERS)
    if start < 0 or end < start:
        raise ZooError(f'README.md needs a line {MARKERS[0]!r} and, after it, {MARKERS[1]!r}')
    return f'{text[: start + len(MARKERS[0])]}\n{table(papers)}{text[end:]}'


def paper_page(paper: Paper) -> str:
    """A paper's README as a page of the docs, with a table of its models."""
    table = zoo_table('## All configs', paper, '../..') if paper.models else ''
    return f'{readme_page(paper.root, paper.readme)}\n{table}'


def readme_page(root: Path, path: Path) -> str:
    """A README of `configs` as a page of the docs: links lead where they led."""
    parts = FENCE.split(path.read_text('utf-8'))  # code stands at the odd places
    parts[::2] = [LINK.sub(lambda m: moved_link(m, root, path), part) for part in parts[::2]]
    return f'{"".join(parts).rstrip()}\n'


def moved_link(match, root: Path, path: Path) -> str:
    """One link of a README, as seen from ``docs/papers``."""
    label, target, title = match.groups()
    place, hash_, anchor = target.partition('#')
    if not place or re.match(r'[a-z]+:', target):
        return match.group()
    file = (path.parent / place).resolve()
    if not file.exists():
        raise ZooError(f'{path} links to {target}, which is not there')
    if file.is_dir():
        file = file / 'README.md'
    if not file.is_file():  # a folder: there is no page of it
        return label[1:-1]
    other = file.relative_to(root)
    if other.name == 'README.md' and other.parts[0] == 'configs' and len(other.parts) == 3:
        moved = f'{other.parts[1]}.md'
    else:
        moved = os.path.relpath(file, root / 'docs' / 'papers')
    return f'{label}({moved}{hash_}{anchor}{title})'


def zoo_table(heading: str, paper: Paper, up: str) -> str:
    """A heading and the table of a paper's models, without columns that would be empty."""
    rows = paper.results(up)
    if not rows:
        return f'{heading}\n'
    used = [i for i in range(len(COLUMNS)) if any(row[i] for row in rows)]
    lines = [[COLUMNS[i] for i in used], ['---'] * len(used), *([r[i] for i in used] for r in rows)]
    return '\n'.join((heading, '', *(f'| {" | ".join(cells)} |' for cells in lines), ''))


def model_zoo(papers: List[Paper], comparisons: Iterable[str] = ()) -> str:
    """The page of all models."""
    models = sum(len(paper.models) for paper in papers)
    intro = (
        f'# Model zoo\n\n{len(papers)} papers, {models} configs. Figures under "Published" are those '
        'of the authors. Those under "Ours" were run with this repository: the data, the figure with its '
        'standard deviation over the seeds, and their number. The page of each paper has the sources of the '
        'former, and the machine, the versions and the commands of the latter.\n'
    )
    pages = ', '.join(f'[](papers/{name}.md)' for name in comparisons)
    more = [f'Methods against each other: {pages}.\n'] if pages else []
    ordered = sorted(papers, key=lambda p: p.name.lower())
    tables = (zoo_table(f'## [{p.name}](papers/{p.slug}.md)', p, '..') for p in ordered)
    return '\n'.join([intro, *more, *tables])


def find_comparisons(root: Path) -> Dict[str, Path]:
    """READMEs of folders that belong to no paper but hold several against each other: folder -> README."""
    found = sorted((root / 'configs').glob('*/README.md'))
    return {p.parent.name: p for p in found if not (p.parent / 'metafile.yml').exists()}


def paper_index(papers: List[Paper], comparisons: Iterable[str] = ()) -> str:
    """The contents page of ``docs/papers``: the papers by name, then the comparisons."""
    names = [paper.slug for paper in sorted(papers, key=lambda p: p.name.lower())]
    lines = [f'{name}\n' for name in (*names, *comparisons)]
    if not lines:
        return '# Papers\n\nNone yet.\n'
    return f'# Papers\n\n```{{toctree}}\n:maxdepth: 1\n\n{"".join(lines)}```\n'


def committed(root: Path, papers: List[Paper]) -> Dict[Path, str]:
    """The generated files that are under version control: path -> content."""
    path = root / 'README.md'
    return {
        root / 'model-index.yml': model_index(papers),
        path: readme(papers, path.read_text('utf-8')),
    }


def write_docs(root: Path, papers: List[Paper]) -> None:
    """Write the pages of the docs; pages of papers that are gone go too."""
    pages = {f'{paper.slug}.md': paper_page(paper) for paper in papers}
    comparisons = find_comparisons(root)
    pages.update({f'{name}.md': readme_page(root, path) for name, path in comparisons.items()})
    pages['index.md'] = paper_index(papers, comparisons)
    folder = root / 'docs' / 'papers'
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob('*.md'):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        write(folder / name, text)
    write(root / 'docs' / 'model_zoo.md', model_zoo(papers, comparisons))


def write(path: Path, text: str) -> None:
    """Write a file, unless that is what it holds: Sphinx reads changed files again."""
    if not path.is_file() or path.read_text('utf-8') != text:
        path.write_text(text, 'utf-8')


def main(argv=None, root: Path = ROOT) -> int:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument('--check', action='store_true', help='write nothing; 1 if a file is stale')
    args = cli.parse_args(argv)
    try:
        papers = find_papers(root)
        files = committed(root, papers)
        if not args.check:
            write_docs(root, papers)
    except ZooError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    stale = [
        path
        for path, text in files.items()
        if not path.is_file() or path.read_text('utf-8') != text
    ]
    if args.check:
        for path in stale:
            print(f'{path.relative_to(root)} is not up to date: run `make zoo`', file=sys.stderr)
        return int(bool(stale))
    for path in stale:
        write(path, files[path])
    print(f'{len(papers)} papers, {sum(len(p.models) for p in papers)} models')
    return 0


if __name__ == '__main__':
    sys.exit(main())
