"""Build script: metadata, and the `.mim` folder in which mim looks for configs and tools."""

import os
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
# What `mim train/test/search mmextra` looks for inside the installed package.
SHARED = ('configs', 'tools', 'model-index.yml')

# The maintained fork has other names for these packages: beside it mmextra is installed without extras.
ENGINE = ['mmengine>=0.10.4', 'mmcv>=2.0']
EXTRAS = dict(
    det=[*ENGINE, 'mmdet>=3.3'],
    seg=[*ENGINE, 'mmsegmentation>=1.2', 'ftfy', 'regex'],
    pretrain=[*ENGINE, 'mmpretrain>=1.2'],
    retrieval=['faiss-cpu'],
    language=['transformers<4.50'],
)
EXTRAS['all'] = sorted({name for names in EXTRAS.values() for name in names})


class BuildWithMim(build_py):
    """Adds `mmextra/.mim`: links to the checkout for an editable install, copies in a wheel."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            mim = ROOT / 'mmextra' / '.mim'
            mim.mkdir(exist_ok=True)
            for name in SHARED:
                (mim / name).unlink(missing_ok=True)
                (mim / name).symlink_to(os.path.relpath(ROOT / name, mim))
            return
        mim = Path(self.build_lib) / 'mmextra' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)
        for name in SHARED:
            source, target = ROOT / name, mim / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy2(source, target)


def version() -> str:
    scope = {}
    exec((ROOT / 'mmextra' / 'version.py').read_text('utf-8'), scope)
    return scope['__version__']


setup(
    name='mmextra',
    version=version(),
    description='Research methods as plug-in components for OpenMMLab',
    long_description=(ROOT / 'README.md').read_text('utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    classifiers=[
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
    ],
    packages=find_packages(include=['mmextra', 'mmextra.*']),
    include_package_data=False,
    install_requires=['numpy', 'scipy', 'torch>=2.1'],
    extras_require=EXTRAS,
    cmdclass=dict(build_py=BuildWithMim),
    zip_safe=False,
)
