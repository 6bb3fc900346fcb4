"""Write the language embeddings of category names that METR reads.

    python tools/make_category_embeddings.py names_clip.npz --source transformers \\
        --path clip-vit-base-patch16 --label-spaces mmdet.CocoDataset mmdet.Objects365V1Dataset
    python tools/make_category_embeddings.py cells.npz --source hash --names RBC WBC Platelets

The text encoder is a local folder of Hugging Face's transformers (CLIP, BERT, ...) or a config and a
checkpoint of mmpretrain's CLIP; nothing is downloaded. The file goes into
``embeddings=dict(source='file', path=...)`` of the model.
"""

import argparse
import inspect
import sys
from pathlib import Path

import numpy as np

from mmextra.det.metr.embeddings import SOURCES, TEMPLATE, embed_names, resolve_label_space


def parse_args(argv=None):
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument('out', type=Path, help='the .npz file to write')
    cli.add_argument(
        '--source',
        choices=[s for s in SOURCES if s != 'file'],
        default='transformers',
        help='default: %(default)s',
    )
    cli.add_argument('--path', help='folder of the text encoder; with mmpretrain, its config')
    cli.add_argument('--checkpoint', help='with mmpretrain: the weights')
    cli.add_argument('--tokenizer', help='with mmpretrain: folder of the tokenizer')
    cli.add_argument('--template', help=f'sentence around a name (default: {TEMPLATE!r})')
    cli.add_argument('--dims', type=int, help='with hash and characters: length (default: 512)')
    cli.add_argument(
        '--label-spaces',
        nargs='*',
        default=[],
        metavar='CLASS',
        help='dataset classes whose categories are wanted, say mmdet.CocoDataset',
    )
    cli.add_argument('--names', nargs='*', default=[], help='further names')
    args = cli.parse_args(argv)
    if not (args.names or args.label_spaces):
        cli.error('give --label-spaces or --names')
    given = {k: getattr(args, k) for k in ('path', 'checkpoint', 'tokenizer', 'template', 'dims')}
    args.options = {k: v for k, v in given.items() if v is not None}
    known = inspect.signature(SOURCES[args.source]).parameters
    for name in args.options:
        if name not in known:
            cli.error(f'--{name} does not go with --source {args.source}')
    if 'path' in known and args.path is None:
        cli.error(f'--source {args.source} needs --path')
    return args


def main(argv=None) -> int:
    args = parse_args(argv)
    try:
        names = {n for space in args.label_spaces for n in resolve_label_space(space, space)}
        names = sorted(names.union(args.names))
        vectors = embed_names(names, args.source, **args.options).numpy()
    except (KeyError, FileNotFoundError, OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open('wb') as file:
        np.savez(file, names=np.array(names), embeddings=vectors)
    print(f'{args.out}: {len(names)} names, {vectors.shape[1]} numbers each')
    return 0


if __name__ == '__main__':
    sys.exit(main())
