"""Write the backbone of a pre-training checkpoint alone, under the keys of the stock class.

    python tools/export_backbone.py work_dirs/hgkd/epoch_300.pth r50.pth

The result loads with ``init_cfg=dict(type='Pretrained', checkpoint='r50.pth')`` in the backbone of an
mmpretrain, mmdet or mmseg config. So does the whole checkpoint, with ``prefix='backbone.'`` added.
"""

import argparse
import sys
from pathlib import Path

import torch

from mmextra import __version__
from mmextra.engine.checkpoint import read_checkpoint, state_dict_of


def export_backbone(source: str, target: str, prefix: str = 'backbone.') -> None:
    """Write the weights under a prefix, without it.

    Args:
        source (str): A checkpoint.
        target (str): The file to write.
        prefix (str): Defaults to ``'backbone.'``.

    Raises:
        FileNotFoundError, ValueError: If the file is absent or unreadable, or no key has the prefix.
    """
    whole = state_dict_of(read_checkpoint(source))
    # Parts of one tensor would each be saved with all of it.
    weights = {k[len(prefix) :]: v.clone() for k, v in whole.items() if k.startswith(prefix)}
    if not weights:
        parts = ', '.join(sorted({k.partition('.')[0] for k in whole}))
        raise ValueError(f'{source}: no key begins with {prefix!r}; they begin with: {parts}')
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    meta = dict(source=Path(source).name, mmextra_version=__version__)
    torch.save(dict(state_dict=weights, meta=meta), target)
    size = sum(t.numel() for t in weights.values())
    print(f'{target}: {len(weights)} tensors, {size:,} numbers')


def main(argv=None) -> int:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument('source', help='the checkpoint of the pre-training')
    cli.add_argument('target', help='the file to write')
    cli.add_argument('--prefix', default='backbone.', help='default: %(default)s')
    args = cli.parse_args(argv)
    try:
        export_backbone(args.source, args.target, args.prefix)
    except (FileNotFoundError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
