import re

import pytest
import yaml
from training import ROOT

METAFILE = """
Collections:
  - Name: {name}
    Metadata: {{Training Data: COCO}}
    Paper: {{Title: 'On {name}', URL: 'https://arxiv.org/abs/0000.00000'}}
    README: configs/{slug}/README.md
Models:
  - Name: {slug}-small_coco
    In Collection: {name}
    Config: configs/{slug}/{slug}-small_coco.py
    Metadata: {{Parameters: 22050664, FLOPs: 4600000000}}
    Results:
      - {{Dataset: COCO, Task: Object Detection, Metrics: {{box AP: 40.9}}}}
    Weights: https://example.org/w.pth
  - Name: {slug}_demo
    In Collection: {name}
    Config: configs/{slug}/{slug}_demo.py
    Metadata: {{'Results Source': 'ours, 3 seeds, 5 epochs'}}
    Results:
      - {{Dataset: BCCD, Task: Object Detection, Metrics: {{box AP: 48.5 ± 0.9, AP50: 84.8 ± 0.3}}}}
"""
README = """# {name}

See [the other](../volo/README.md#use), [its config]({slug}_demo.py "a config"), [the guide](../../docs/guide.md),
[the folder](../volo), [the code](../../mmextra), [arXiv](https://arxiv.org) and [below](#below).
![curve](curve.svg)

```python
model = dict(type='[not](a link)')
```

Nor is `[this](one)`.
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout of two papers."""
    for slug, name in (('volo', 'VOLO'), ('ld', 'LD')):
        folder = tmp_path / 'configs' / slug
        folder.mkdir(parents=True)
        (folder / 'metafile.yml').write_text(METAFILE.format(name=name, slug=slug))
        (folder / 'README.md').write_text(README.format(name=name, slug=slug))
        for config in (f'{slug}-small_coco.py', f'{slug}_demo.py', 'curve.svg'):
            (folder / config).write_text('')
    (tmp_path / 'mmextra' / 'distill').mkdir(parents=True)
    (tmp_path / 'mmextra' / 'backbones' / 'volo').mkdir(parents=True)
    (tmp_path / 'mmextra' / 'distill' / 'ld.py').write_text('')
    (tmp_path / 'docs').mkdir()
    (tmp_path / 'docs' / 'guide.md').write_text('')
    (tmp_path / 'README.md').write_text('# top\n\n<!-- papers -->\nold\n<!-- /papers -->\n\nend\n')
    return tmp_path


@pytest.fixture
def zoo(tool, checkout):
    return lambda *args: tool('model_zoo.py').main(list(args), root=checkout)


def test_everything_is_written(zoo, checkout):
    assert zoo() == 0
    index = yaml.safe_load((checkout / 'model-index.yml').read_text())
    assert index == {'Import': ['configs/ld/metafile.yml', 'configs/volo/metafile.yml']}
    readme = (checkout / 'README.md').read_text()
    assert readme.startswith('# top\n\n<!-- papers -->\n| Name') and readme.endswith('\nend\n')
    assert 'old' not in readme
    ld = '| [LD](configs/ld/README.md) | [On LD](https://arxiv.org/abs/0000.00000) | `mmextra.distill` |'
    assert ld in readme and '`mmextra.backbones`' in readme
    models = (checkout / 'docs' / 'model_zoo.md').read_text()
    assert '2 papers, 4 configs' in models and '## [LD](papers/ld.md)' in models
    row = '| [ld-small_coco](../configs/ld/ld-small_coco.py) | 22.05 M | 4.60 G | COCO: box AP 40.9 |  | '
    assert row + '[file](https://example.org/w.pth) |' in models
    ours = 'BCCD: box AP 48.5 ± 0.9, AP50 84.8 ± 0.3 (3 seeds, 5 epochs)'
    assert f'| [ld_demo](../configs/ld/ld_demo.py) |  |  |  | {ours} |  |' in models
    assert re.search(r'\nld\nvolo\n```', (checkout / 'docs' / 'papers' / 'index.md').read_text())


def test_links_of_a_readme_still_lead_where_they_led(zoo, checkout):
    zoo()
    page = (checkout / 'docs' / 'papers' / 'ld.md').read_text()
    for link in (
        '[the other](volo.md#use)',
        '[its config](../../configs/ld/ld_demo.py "a config")',
        '[the guide](../guide.md)',
        '[the folder](volo.md), the code, [arXiv](https://arxiv.org) and [below](#below)',
        '![curve](../../configs/ld/curve.svg)',
        "dict(type='[not](a link)')",
        '`[this](one)`',
    ):
        assert link in page
    for target in re.findall(r'\]\((\.\./[^)# ]*)', page):
        assert (checkout / 'docs' / 'papers' / target).exists(), target


def test_a_second_run_changes_nothing_and_a_paper_that_is_gone_goes(zoo, checkout):
    zoo()
    written = {p: (p.read_text(), p.stat().st_mtime_ns) for p in checkout.rglob('*.[my][dm]*')}
    zoo()
    assert written == {
        p: (p.read_text(), p.stat().st_mtime_ns) for p in checkout.rglob('*.[my][dm]*')
    }
    (checkout / 'configs' / 'ld' / 'README.md').write_text('# LD\n')
    for file in ('metafile.yml', 'README.md'):
        (checkout / 'configs' / 'volo' / file).unlink()
    assert zoo() == 0
    assert {p.name for p in (checkout / 'docs' / 'papers').iterdir()} == {'index.md', 'ld.md'}


def test_a_readme_without_metafile_is_a_page_and_no_paper(zoo, checkout):
    folder = checkout / 'configs' / 'cifar10_backbones'
    folder.mkdir()
    (folder / 'README.md').write_text('# Two of them\n\n[VOLO](../volo/README.md)\n')
    assert zoo() == 0
    pages = checkout / 'docs' / 'papers'
    assert (pages / 'cifar10_backbones.md').read_text() == '# Two of them\n\n[VOLO](volo.md)\n'
    assert '\nld\nvolo\ncifar10_backbones\n' in (pages / 'index.md').read_text()
    assert 'Two of them' not in (checkout / 'README.md').read_text()
    assert '[](papers/cifar10_backbones.md)' in (checkout / 'docs' / 'model_zoo.md').read_text()


def test_columns_that_would_be_empty_are_left_out(zoo, checkout):
    metafile = checkout / 'configs' / 'ld' / 'metafile.yml'
    text = metafile.read_text().replace('Parameters: 22050664, FLOPs: 4600000000', 'Epochs: 12')
    metafile.write_text(text.replace('Weights:', 'Note:'))
    zoo()
    page = (checkout / 'docs' / 'papers' / 'ld.md').read_text()
    assert (
        '| Config | Published | Ours |\n| --- | --- | --- |\n| [ld-small_coco](../../configs/ld/'
        in page
    )


def test_check(zoo, checkout, capsys):
    assert zoo('--check') == 1
    said = capsys.readouterr().err
    assert 'model-index.yml is not up to date' in said and 'README.md is not up to date' in said
    assert not (checkout / 'docs' / 'model_zoo.md').exists()
    zoo()
    assert zoo('--check') == 0
    (checkout / 'README.md').write_text((checkout / 'README.md').read_text().replace('On LD', 'on'))
    assert zoo('--check') == 1


@pytest.mark.parametrize(
    'old, new, message',
    [
        ('configs/ld/ld_demo.py', 'configs/ld/gone.py', 'are absent: configs/ld/gone.py'),
        ('Name: ld_demo', 'Name: ld-small_coco', 'names models twice: ld-small_coco'),
        ('Name: ld_demo', 'Name: volo_demo', 'volo_demo is a model of both ld and volo'),
        ('Title', 'Name', "lacks 'Title'"),
        ('README: configs/ld', 'README: configs/no', 'are absent: configs/no/README.md'),
    ],
)
def test_what_an_author_has_to_mend(zoo, checkout, capsys, old, new, message):
    metafile = checkout / 'configs' / 'ld' / 'metafile.yml'
    metafile.write_text(metafile.read_text().replace(old, new))
    assert zoo() == 1
    assert message in capsys.readouterr().err


def test_a_dead_link_and_absent_markers(zoo, checkout, capsys):
    readme = checkout / 'configs' / 'ld' / 'README.md'
    readme.write_text('[dead](nowhere.md)')
    assert zoo() == 1 and 'links to nowhere.md' in capsys.readouterr().err
    (checkout / 'README.md').write_text('# top\n')
    assert zoo() == 1 and 'needs a line' in capsys.readouterr().err


def test_an_empty_collection(zoo, checkout):
    """mmengine iterates over the list of imports: it must be one, also while there are none."""
    for metafile in checkout.glob('configs/*/metafile.yml'):
        metafile.unlink()
    assert zoo() == 0
    assert yaml.safe_load((checkout / 'model-index.yml').read_text()) == {'Import': []}


def test_mim_finds_a_paper_by_its_name(zoo, checkout):
    search = pytest.importorskip('mim.commands.search')
    zoo()
    metadata = search.load(str(checkout / 'model-index.yml'))
    found = search.filter_by_models(search.convert2df(metadata), ['ld'])
    assert found.index.to_list() == ['ld-small_coco', 'ld_demo']
    assert found['coco/box_ap'].to_list()[0] == 40.9


def test_the_committed_files_are_up_to_date(tool):
    assert tool('model_zoo.py').main(['--check']) == 0


def test_every_figure_of_ours_stands_in_the_readme():
    """The zoo has its figures from metafiles, which nobody would mend after another run."""
    for metafile in sorted(ROOT.glob('configs/*/metafile.yml')):
        readme = (metafile.parent / 'README.md').read_text('utf-8')
        models = yaml.safe_load(metafile.read_text('utf-8'))['Models']
        run_here = [
            model
            for model in models
            if (model.get('Metadata') or {}).get('Results Source', '').startswith('ours')
        ]
        assert run_here, f'{metafile} has nothing that was trained here'
        for model in run_here:
            for result in model['Results']:
                for name, value in result['Metrics'].items():
                    assert str(value) in readme, f'{model["Name"]}: {name} {value}'
