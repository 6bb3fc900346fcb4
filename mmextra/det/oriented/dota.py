"""The DOTA data sets, versions 1.0, 1.5 and 2.0, as oriented boxes."""

import math
import struct
from collections import Counter
from pathlib import Path
from typing import List, Tuple

from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger
from PIL import Image

from mmextra.registry import DATASETS
from mmextra.structures.oriented_boxes import quads_to_boxes

HEADERS = ('imagesource:', 'gsd:')
MIN_SIZE = 1.0  # pixels
FURTHEST = 1e6  # pixels; the largest images of DOTA are 30,000 wide
CLASSES = (
    *('plane', 'baseball-diamond', 'bridge', 'ground-track-field', 'small-vehicle'),
    *('large-vehicle', 'ship', 'tennis-court', 'basketball-court', 'storage-tank'),
    *('soccer-ball-field', 'roundabout', 'harbor', 'swimming-pool', 'helicopter'),
)
CLASSES_V15 = (*CLASSES, 'container-crane')
CLASSES_V2 = (*CLASSES_V15, 'airport', 'helipad')
PALETTE = [
    *[(165, 42, 42), (189, 183, 107), (0, 255, 0), (255, 0, 0), (138, 43, 226), (255, 128, 0)],
    *[(255, 0, 255), (0, 255, 255), (255, 193, 193), (0, 51, 153), (255, 250, 205), (0, 139, 139)],
    *[(255, 255, 0), (147, 116, 116), (0, 0, 255), (220, 180, 80), (119, 11, 32), (0, 100, 60)],
]


@DATASETS.register_module()
class OrientedDOTADataset(BaseDataset):
    """DOTA-v1.0, or any set in its format, with oriented boxes in the range ``'le90'``.

    ``ann_file`` is a folder with a text file for each image. After header lines (``imagesource:``,
    ``gsd:``) each line is an object: ``x1 y1 x2 y2 x3 y3 x4 y4 class difficulty``; the difficulty
    is 0 where it is left out. Without ``ann_file`` every image of the folder is taken, without
    objects.

    An instance has ``bbox`` (cx, cy, w, h, angle), ``quad`` (the eight numbers), ``bbox_label`` and
    ``ignore_flag``. Nothing is left out in silence; one line of the log counts

    - objects of classes that ``metainfo`` does not select, which are left out;
    - quadrilaterals without an area, whose sides are made one pixel long;
    - objects whose centre is outside of the image, which are kept as they are.

    Args:
        img_suffix (str): Suffix of the images. Defaults to ``'png'``.
        diff_thr (int): Objects of a difficulty above it are ignored. Defaults to 100: none are.
        **kwargs: Those of :class:`mmengine.dataset.BaseDataset`. ``data_prefix`` names the folder
            of the images, ``dict(img_path='images/')``; ``filter_cfg=dict(filter_empty_gt=True)``
            leaves out images without objects in training.

    Raises:
        FileNotFoundError: If the folder of annotations or an image is absent.
        ValueError: If a line is not in the format, or of a class that the data set does not have,
            if an image is damaged, or if ``data_prefix`` has no ``img_path``.
    """

    METAINFO = dict(classes=CLASSES, palette=PALETTE[: len(CLASSES)])

    def __init__(self, *args, img_suffix: str = 'png', diff_thr: int = 100, **kwargs) -> None:
        self.img_suffix = img_suffix.lstrip('.')
        self.diff_thr = diff_thr
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> List[dict]:
        """Read the annotations of all images, in the order of their names."""
        if 'img_path' not in self.data_prefix:
            raise ValueError(
                f'data_prefix of {type(self).__name__} must be dict(img_path=FOLDER), got '
                f'{self.data_prefix}'
            )
        images = Path(self.data_prefix['img_path'])
        self.labels = {name: i for i, name in enumerate(self.metainfo['classes'])}
        self.counts: Counter = Counter()
        if not self.ann_file:
            paths = sorted(images.glob(f'*.{self.img_suffix}'))
            data_list = [self.image_info(path) for path in paths]
        else:
            folder = Path(self.ann_file)
            if not folder.is_dir():
                raise FileNotFoundError(
                    f'ann_file of {type(self).__name__} must be a folder of .txt files, one for each '
                    f'image; {folder} is none'
                )
            files = sorted(folder.glob('*.txt'))
            data_list = []
            for file in files:
                info = self.image_info(images / f'{file.stem}.{self.img_suffix}')
                info['instances'] = self.load_instances(file, info['width'], info['height'])
                data_list.append(info)
        if not data_list:
            where = f'{self.ann_file}*.txt' if self.ann_file else f'{images}/*.{self.img_suffix}'
            raise FileNotFoundError(f'{type(self).__name__} found nothing in {where}')
        self._report()
        return data_list

    def image_info(self, path: Path) -> dict:
        """What is known of an image without its annotations."""
        width, height = image_size(path)
        return dict(
            img_id=path.stem,
            file_name=path.name,
            img_path=str(path),
            width=width,
            height=height,
            instances=[],
        )

    def load_instances(self, file: Path, width: int, height: int) -> List[dict]:
        """Read the objects of an image of this size."""
        quads, instances = [], []
        for quad, name, difficulty in read_dota(file):
            if name not in self.labels:
                if name not in self.METAINFO['classes']:
                    raise ValueError(self._unknown_class(file, name))
                self.counts['of classes that are not selected: left out'] += 1
                continue
            quads.append(quad)
            ignored = int(difficulty > self.diff_thr)
            instances.append(dict(bbox_label=self.labels[name], ignore_flag=ignored, quad=quad))
        if not instances:
            return []
        boxes = quads_to_boxes(quads)
        flat = boxes[:, 2:4].amin(1) < MIN_SIZE
        outside = ((boxes[:, :2] < 0) | (boxes[:, :2] > boxes.new_tensor([width, height]))).any(1)
        self.counts['thinner than a pixel: made one pixel wide'] += int(flat.sum())
        self.counts['with their centre outside of the image: kept'] += int(outside.sum())
        boxes[:, 2:4].clamp_(min=MIN_SIZE)
        for instance, box in zip(instances, boxes.tolist()):
            instance['bbox'] = box
        return instances

    def filter_data(self) -> List[dict]:
        """Leave out images without objects in training, if ``filter_cfg`` says so."""
        if self.test_mode or not (self.filter_cfg or {}).get('filter_empty_gt'):
            return self.data_list
        kept = [info for info in self.data_list if info['instances']]
        if len(kept) < len(self.data_list):
            MMLogger.get_current_instance().info(
                f'{type(self).__name__}: {len(self.data_list) - len(kept)} of {len(self.data_list)} '
                'images have no objects and are left out'
            )
        return kept

    def get_cat_ids(self, idx: int) -> List[int]:
        """Classes of the objects of an image, for the samplers that balance them."""
        return [instance['bbox_label'] for instance in self.get_data_info(idx)['instances']]

    def _report(self) -> None:
        found = [f'{count} {what}' for what, count in self.counts.items() if count]
        if found:
            MMLogger.get_current_instance().warning(
                f'{type(self).__name__}, {self.ann_file}: objects {"; ".join(found)}'
            )

    def _unknown_class(self, file: Path, name: str) -> str:
        others = (OrientedDOTADataset, OrientedDOTADatasetV15, OrientedDOTADatasetV2)
        other = next((c.__name__ for c in others if name in c.METAINFO['classes']), None)
        hint = (
            f'mmextra.{other} has it'
            if other
            else 'name your own classes with metainfo=dict(classes=(...))'
        )
        return (
            f'{file} has an object of class {name!r}, which {type(self).__name__} with the classes '
            f'{tuple(self.labels)} does not know: {hint}'
        )


@DATASETS.register_module()
class OrientedDOTADatasetV15(OrientedDOTADataset):
    """DOTA-v1.5: the classes of v1.0 and ``container-crane``."""

    METAINFO = dict(classes=CLASSES_V15, palette=PALETTE[: len(CLASSES_V15)])


@DATASETS.register_module()
class OrientedDOTADatasetV2(OrientedDOTADataset):
    """DOTA-v2.0: the classes of v1.5, ``airport`` and ``helipad``."""

    METAINFO = dict(classes=CLASSES_V2, palette=PALETTE)


def read_dota(file: Path) -> List[Tuple[List[float], str, int]]:
    """The objects of an annotation file: eight coordinates, class and difficulty of each.

    Raises:
        ValueError: If a line is not in the format; the message names file and line.
    """
    try:
        lines = Path(file).read_text('utf-8-sig').split('\n')
    except UnicodeDecodeError as error:
        raise ValueError(f'{file} is no text in UTF-8: {error}') from error
    objects = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith(HEADERS):
            continue
        fields = line.split()
        try:
            quad, name = [float(v) for v in fields[:8]], fields[8]
            difficulty = int(fields[9]) if len(fields) > 9 else 0
        except (ValueError, IndexError):
            quad = [math.nan]
        if not all(abs(v) < FURTHEST for v in quad):
            raise ValueError(
                f'{file}:{number}: expected x1 y1 x2 y2 x3 y3 x4 y4 class difficulty, found '
                f'{len(fields)} fields: {line!r}'
            )
        objects.append((quad, name, difficulty))
    return objects


def image_size(path: Path) -> Tuple[int, int]:
    """Width and height of an image, from its header alone."""
    if not path.is_file():
        raise FileNotFoundError(
            f'there is no image {path}: check data_prefix=dict(img_path=...) and img_suffix'
        )
    with path.open('rb') as file:
        header = file.read(24)
        # Pillow refuses to open the largest images of DOTA.
        if header.startswith(b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR') and len(header) == 24:
            size = struct.unpack('>II', header[16:])
        else:
            file.seek(0)
            try:
                with Image.open(file) as image:
                    size = image.size
            except Exception as error:  # Pillow raises whatever a damaged file happens to cause
                raise ValueError(f'{path} cannot be read as an image: {error}') from error
    if min(size) < 1:
        raise ValueError(f'{path} is an image of {size[0]}x{size[1]} pixels')
    return size
