"""What is installed: a wheel carries everything that mim looks for."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_wheel_carries_configs_and_tools(tmp_path):
    """One that is made from the archive of sources, as `python -m build` does and indices of packages need."""
    source = tmp_path / 'source'
    source.mkdir()
    for name in ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE'):
        shutil.copy2(ROOT / name, source)
    shutil.copy2(ROOT / 'model-index.yml', source)
    for name in ('mmextra', 'configs', 'tools'):
        ignored = shutil.ignore_patterns('__pycache__', '.mim')
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    command = [sys.executable, 'setup.py', '--quiet', 'sdist']
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    archive = next((source / 'dist').glob('mmextra-*.tar.gz'))
    command = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation']
    command += ['--quiet', '--wheel-dir', tmp_path / 'dist', archive]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    wheel = next((tmp_path / 'dist').glob('mmextra-*.whl'))
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = [
        p for folder in ('configs', 'tools') for p in (source / folder).rglob('*') if p.is_file()
    ]
    missing = [
        p for p in shipped if f'mmextra/.mim/{p.relative_to(source).as_posix()}' not in names
    ]
    assert not missing and 'mmextra/.mim/model-index.yml' in names
    modules = [p.relative_to(source).as_posix() for p in (source / 'mmextra').rglob('*.py')]
    assert set(modules) <= names
    assert not [n for n in names if n.startswith(('tests', 'configs', 'tools'))]
    metadata = (
        zipfile.ZipFile(wheel)
        .read(f'mmextra-{wheel.name.split("-")[1]}.dist-info/METADATA')
        .decode()
    )
    for extra in ('det', 'seg', 'pretrain', 'all'):
        assert f'Provides-Extra: {extra}' in metadata
