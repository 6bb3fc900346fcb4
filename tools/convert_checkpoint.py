"""Write the authors' checkpoint of a paper as an mm checkpoint.

    python tools/convert_checkpoint.py volo d1_224_84.2.pth.tar volo-d1.pth

The result holds ``state_dict`` and ``meta``, and loads in every OpenMMLab tool. A config can also read
the authors' file as it is: ``init_cfg=dict(type='mmextra.OfficialCheckpoint', checkpoint=...)``.
"""

import argparse
import sys
from pathlib import Path
from typing import Dict, List, Mapping, Tuple

import torch

from mmextra import __version__
from mmextra.engine.checkpoint import StateDict, get_layout, read_checkpoint, state_dict_of


def pick(checkpoint: Mapping, key: str) -> Mapping:
    """The part of a checkpoint under a dotted path of keys, say ``ema.state_dict``.

    Raises:
        ValueError: If there is no such part; the message lists the keys that there are.
    """
    part = checkpoint
    for name in key.split('.'):
        if not isinstance(part, Mapping) or name not in part:
            known = ', '.join(map(str, part)) if isinstance(part, Mapping) else 'none'
            raise ValueError(f'the checkpoint has no {key!r}: {name!r} is not among {known[:300]}')
        part = part[name]
    if not isinstance(part, Mapping):
        raise ValueError(f'{key!r} of the checkpoint is a {type(part).__name__}, not a state dict')
    return part


def trace(before: StateDict, after: StateDict) -> Tuple[Dict[str, str], List[str], List[str]]:
    """Find out what a layout did with each tensor.

    Args:
        before, after (dict): State dicts in the authors' layout and in ours.

    Returns:
        tuple: What was renamed or kept (ours -> theirs); our keys that were computed from others; their
        keys that no longer appear as they were.
    """
    by_identity = {id(tensor): key for key, tensor in before.items()}
    moved = {k: by_identity[id(t)] for k, t in after.items() if id(t) in by_identity}
    computed = [k for k in after if k not in moved]
    return moved, computed, [k for k in before if k not in moved.values()]


def convert(paper: str, source: str, target: str, key: str = None) -> None:
    """Convert one file and say what was done with each key.

    Raises:
        FileNotFoundError, ValueError, KeyError: If the file or the part is absent or unreadable, or if the
            paper has no layout, or if the file is not in that layout.
    """
    layout = get_layout(paper)
    checkpoint = read_checkpoint(source)
    before = state_dict_of(pick(checkpoint, key) if key else checkpoint)
    try:
        after = layout(dict(before))
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f'{source} is not in the layout of {paper} ({type(error).__name__}: {error}); '
            f'its keys begin with: {", ".join(list(before)[:5])}'
        ) from error
    if not after:
        raise ValueError(f'no key of {source} belongs to the layout of {paper}')
    moved, computed, gone = trace(before, after)
    for ours, theirs in moved.items():
        print(f'{theirs} -> {ours}' if ours != theirs else f'{ours} (kept)')
    for ours in computed:
        print(f'computed -> {ours}')
    for theirs in gone:
        print(f'{theirs} -> {"used in what was computed, or left out" if computed else "left out"}')
    meta = dict(paper=paper, source=Path(source).name, mmextra_version=__version__)
    # Parts of one tensor would each be saved with all of it.
    weights = {k: t.detach().clone().contiguous() for k, t in after.items()}
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict=weights, meta=meta), target)
    size = sum(t.numel() for t in weights.values())
    print(
        f'{target}: {len(weights)} tensors, {size:,} numbers; {len(moved)} kept or renamed, '
        f'{len(computed)} computed, {len(gone)} of {len(before)} not carried over as they were'
    )


def main(argv=None) -> int:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument('paper', help="the paper's short name, as in configs/PAPER")
    cli.add_argument('source', help="the authors' file")
    cli.add_argument('target', help='the file to write')
    cli.add_argument(
        '--key', help='part of the file that holds the weights, say `model_ema` (default: found)'
    )
    args = cli.parse_args(argv)
    try:
        convert(args.paper, args.source, args.target, args.key)
    except (FileNotFoundError, ValueError, KeyError, ModuleNotFoundError) as error:
        print(f'error: {error.args[0]}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
