"""Write the labels of GTA5 or SYNTHIA in the training ids of Cityscapes, beside the originals.

    python tools/train_ids.py gta5 data/gta5/labels              # 00001.png -> 00001_labelTrainIds.png
    python tools/train_ids.py synthia data/synthia/GT/LABELS

Files that are there already are left alone. The configs in configs/decouplenet read what is written here.
"""

import argparse
import sys
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

SUFFIX = '_labelTrainIds.png'
IGNORED = 255
# Original id -> training id. GTA5 has the label ids of Cityscapes; SYNTHIA has its own.
GTA5 = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13,
    27: 14, 28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip
SYNTHIA = {
    3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 16: 9, 1: 10, 10: 11, 17: 12, 8: 13,
    18: 14, 19: 15, 20: 16, 12: 17, 11: 18,
}  # fmt: skip


def read_gta5(path: Path) -> np.ndarray:
    """The ids: indices into the palette of the image."""
    try:
        image = Image.open(path)
        labels = np.array(image)
    except Exception as error:  # Pillow raises whatever a damaged file happens to cause
        raise ValueError(f'{path} cannot be read as an image: {error}') from error
    if image.mode not in ('P', 'L'):
        raise ValueError(f'{path} is no label of GTA5: expected one channel, found {image.mode}')
    return labels


def read_synthia(path: Path) -> np.ndarray:
    """The ids: the first of three channels of 16 bits."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None or image.shape[2:] != (3,) or image.dtype != np.uint16:
        raise ValueError(f'{path} is no label of SYNTHIA: expected three channels of 16 bits')
    return image[..., 2]


KINDS = dict(gta5=(read_gta5, GTA5), synthia=(read_synthia, SYNTHIA))


def convert(path: Path, kind: str) -> bool:
    """Convert one file, unless that was done."""
    out = path.with_name(path.stem + SUFFIX)
    if out.is_file():
        return False
    read, ids = KINDS[kind]
    table = np.full(2**16, IGNORED, np.uint8)
    table[list(ids)] = list(ids.values())
    part = out.with_suffix('.part.png')
    cv2.imwrite(str(part), table[read(path)])
    part.rename(out)  # what is broken off leaves no half a file under the name
    return True


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('kind', choices=sorted(KINDS))
    parser.add_argument('folder', type=Path, help='the folder of original labels')
    parser.add_argument('--workers', type=int, default=4, help='processes (default: 4)')
    args = parser.parse_args(argv)
    found = sorted(args.folder.glob('*.png'))
    found = [p for p in found if not p.name.endswith((SUFFIX, '.part.png'))]
    if not found:
        print(f'error: {args.folder} holds no *.png', file=sys.stderr)
        return 1
    try:
        if args.workers > 1:
            with Pool(args.workers) as pool:
                written = sum(pool.map(partial(convert, kind=args.kind), found, chunksize=16))
        else:
            written = sum(convert(path, args.kind) for path in found)
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(f'{args.folder}: {written} written, {len(found) - written} there already')
    return 0


if __name__ == '__main__':
    sys.exit(main())
