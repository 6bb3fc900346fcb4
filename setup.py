"""Build script: metadata, and the `.mim` folder that `mim train/test mmextra` reads configs and
tools from."""

import os
import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent.resolve()
MIM = ROOT / 'mmextra' / '.mim'
# What `mim` looks for inside the installed package.
SHARED = ('configs', 'tools', 'model-index.yml')

EXTRAS = dict(
    det=['mmcv>=2.0', 'mmdet>=3.3'],
    seg=['mmcv>=2.0', 'mmsegmentation>=1.2', 'ftfy', 'regex'],
    pretrain=['mmcv>=2.0', 'mmpretrain>=1.2'],
    retrieval=['faiss-cpu'],
    language=['transformers<4.50'],
)
EXTRAS['all'] = sorted({name for names in EXTRAS.values() for name in names})


def fill_mim() -> None:
    """Link `.mim` to the checkout for an editable install; copy into it for a wheel."""
    editable = 'develop' in sys.argv or 'editable_wheel' in sys.argv or 'dist_info' in sys.argv
    MIM.mkdir(exist_ok=True)
    for name in SHARED:
        source, target = ROOT / name, MIM / name
        if target.is_symlink() or target.is_file():
            target.unlink()
        elif target.is_dir():
            shutil.rmtree(target)
        if editable:
            target.symlink_to(os.path.relpath(source, MIM))
        elif source.is_dir():
            shutil.copytree(
                source, target, ignore=shutil.ignore_patterns('__pycache__', 'work_dirs')
            )
        else:
            shutil.copy2(source, target)


def version() -> str:
    scope = {}
    exec((ROOT / 'mmextra' / 'version.py').read_text('utf-8'), scope)
    return scope['__version__']


fill_mim()
setup(
    name='mmextra',
    version=version(),
    description='Research methods as plug-in components for OpenMMLab',
    long_description=(ROOT / 'README.md').read_text('utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['mmextra', 'mmextra.*']),
    package_data={'mmextra': [f'.mim/{pattern}' for pattern in ('*.yml', '**/*')]},
    include_package_data=False,
    install_requires=['mmengine>=0.10.4', 'numpy', 'torch>=2.1'],
    extras_require=EXTRAS,
    zip_safe=False,
)
