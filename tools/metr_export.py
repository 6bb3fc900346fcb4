"""Write what a METR has learned as the checkpoint of a stock detector.

    python tools/metr_export.py work_dirs/metr/epoch_1.pth dino.pth
    python tools/metr_export.py work_dirs/metr/epoch_1.pth deformable.pth --target deformable-detr

The result goes into ``load_from`` of a stock DINO or two-stage Deformable DETR with the same widths
and levels. Class branches and label embedding start anew.
"""

import argparse
import sys
from pathlib import Path

import torch

from mmextra import __version__
from mmextra.det.metr.transfer import LEFT_OUT, stock_weights
from mmextra.engine.checkpoint import read_checkpoint, state_dict_of


def main(argv=None) -> int:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument('source', help='the checkpoint of METR')
    cli.add_argument('out', type=Path, help='the file to write')
    cli.add_argument(
        '--target', choices=list(LEFT_OUT), default='dino', help='default: %(default)s'
    )
    args = cli.parse_args(argv)
    try:
        weights = stock_weights(state_dict_of(read_checkpoint(args.source)), args.target)
    except (FileNotFoundError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    args.out.parent.mkdir(parents=True, exist_ok=True)
    meta = dict(source=Path(args.source).name, mmextra_version=__version__)
    torch.save(dict(state_dict={k: v.clone() for k, v in weights.items()}, meta=meta), args.out)
    print(f'{args.out}: {len(weights)} tensors for {args.target}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
