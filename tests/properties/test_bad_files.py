"""Bad annotation files: loaders of ours read them, or name the file, and of text files the line."""

import importlib.util
import io
import json
import pickle
import re
import sys
import zipfile
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from damage import JSON, damaged, spoiled
from hypothesis import given
from hypothesis import strategies as st

from mmextra.backbones.token_labeling import LoadTokenLabel
from mmextra.det.metr.data import LabelSpaceCheckHook
from mmextra.det.metr.embeddings import embed_names, resolve_label_space
from mmextra.det.oriented.dota import OrientedDOTADataset, image_size, read_dota
from mmextra.seg.decouplenet.transforms import LoadSoftLabel

TOOLS = Path(__file__).parents[2] / 'tools'
NAMES = count()
# What a loader may raise, with the file in its message.
CLEAR = (ValueError, FileNotFoundError)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('files')


@pytest.fixture(scope='module')
def tools():
    """The scripts, as Python would run them."""
    sys.path.append(str(TOOLS))
    scripts = {}
    for name in ('prepare_data', 'dota_split', 'train_ids'):
        spec = importlib.util.spec_from_file_location(name, TOOLS / f'{name}.py')
        scripts[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(scripts[name])
    # Stand-ins for downloads are not of their size.
    scripts['prepare_data'].expect = lambda *args: None
    yield SimpleNamespace(**scripts)
    sys.path.remove(str(TOOLS))
    for name in scripts:
        del sys.modules[name]


def fresh(folder, suffix):
    """A file that no other example has used."""
    return folder / f'file{next(NAMES)}{suffix}'


def bytes_of(save, *args, **kwargs):
    stream = io.BytesIO()
    save(stream, *args, **kwargs)
    return stream.getvalue()


# Text files of DOTA

COORDINATES = st.one_of(
    st.floats(-50, 300).map(lambda v: f'{v:.1f}'),
    st.sampled_from(['nan', 'inf', '-inf', '1e400', '1e38', '', 'x', '1,5', '0']),
)
LINES = st.one_of(
    st.builds(
        lambda quad, name, rest: ' '.join([*quad, name, *rest]),
        st.lists(COORDINATES, min_size=7, max_size=9),
        st.sampled_from(['ship', 'plane', 'Ship', 'ufo', '船', '']),
        st.lists(st.sampled_from(['0', '1', '2', '-1', '1.0', 'x', '10' * 12]), max_size=2),
    ),
    st.just('10 10 30 10 30 20 10 20 ship 0'),
    st.sampled_from(
        ['imagesource:GoogleEarth', 'gsd:null', '', ' ', 'GSD: 1', '\t', '\x0c', '0' * 999]
    ),
    st.text(max_size=20),
)
TEXTS = st.one_of(
    st.lists(LINES, max_size=4).map(lambda lines: '\n'.join(lines).encode('utf-8', 'replace')),
    damaged(b'gsd:0.1\n10 10 30 10 30 20 10 20 ship 0\n1 2 30 10 30 20 10 20 plane 1\n'),
    st.binary(max_size=30),
)


def good_lines(text):
    """Numbers of the lines of a text that a reader of DOTA's format must take."""
    pattern = r'\s*(-?\d+(\.\d+)?\s+){8}\S+(\s+-?\d+)?\s*'
    lines = re.split(r'\r\n|\n|\r', text.decode('utf-8', 'replace'))
    return [i for i, line in enumerate(lines, 1) if re.fullmatch(pattern, line)], lines


def assert_names_a_bad_line(error, path, text):
    """The message has the file, and the number of a line that is indeed bad, if the text has lines at all."""
    found = re.search(rf'{re.escape(str(path))}:(\d+): ', str(error))
    if not found:
        assert str(path) in str(error) and 'UTF-8' in str(error), error
        with pytest.raises(UnicodeDecodeError):
            text.decode()
        return
    good, lines = good_lines(text)
    assert 1 <= int(found[1]) <= len(lines)
    assert int(found[1]) not in good or 'class' in str(error)


@given(text=TEXTS)
def test_dota_files(folder, tools, text):
    path = fresh(folder, '.txt')
    path.write_bytes(text)
    readers = (
        (read_dota, ValueError),
        (tools.dota_split.read_objects, tools.dota_split.SplitError),
    )
    for read, raised in readers:
        try:
            found = read(path)
        except raised as error:
            assert_names_a_bad_line(error, path, text)
        else:
            quads = found.quads if hasattr(found, 'quads') else [quad for quad, _, _ in found]
            assert np.isfinite(np.array(quads, float)).all()
            assert len(quads) >= len(good_lines(text)[0])
    path.unlink()


@pytest.fixture(scope='module')
def dota(folder):
    """A data set of one image."""
    for name in ('images', 'labels'):
        (folder / name).mkdir()
    cv2.imwrite(str(folder / 'images' / 'P1.png'), np.zeros((64, 64, 3), np.uint8))
    return folder


@given(text=TEXTS)
def test_dota_data_sets(dota, text):
    path = dota / 'labels' / 'P1.txt'
    path.write_bytes(text)
    options = dict(ann_file=str(path.parent), data_prefix=dict(img_path=str(dota / 'images')))
    try:
        dataset = OrientedDOTADataset(**options, serialize_data=False)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        boxes = np.array([i['bbox'] for i in dataset[0]['instances']], float).reshape(-1, 5)
        assert np.isfinite(boxes).all() and (boxes[:, 2:4] >= 1).all()


@given(content=damaged(cv2.imencode('.png', np.zeros((4, 6, 3), np.uint8))[1].tobytes()[:64]))
def test_image_headers(folder, content):
    path = fresh(folder, '.png')
    path.write_bytes(content)
    try:
        width, height = image_size(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert width > 0 and height > 0
    path.unlink()


# Label maps of token labelling

MAP = np.stack([np.random.RandomState(0).rand(2, 3, 3), np.ones((2, 3, 3))]).astype(np.float32)
ARRAYS = st.one_of(
    st.builds(
        lambda shape, dtype: np.ones(shape, dtype),
        st.lists(st.integers(0, 3), max_size=5),
        st.sampled_from(['f2', 'f4', 'f8', 'i1', 'u1', 'i8', '?', 'c8', 'U3', 'S2', 'M8[D]']),
    ),
    st.sampled_from([np.nan, np.inf, -1.0, 0.5, 1e30]).map(lambda v: np.full((2, 3, 3), v)),
)


def assert_loads_label(path):
    (path.parent / 'maps' / path.parent.name).mkdir(parents=True, exist_ok=True)
    file = path.parent / 'maps' / path.parent.name / path.name
    path.rename(file)
    load = LoadTokenLabel(str(path.parent / 'maps'), path.suffix)
    try:
        label = load(dict(img_path=str(path.with_suffix('.jpg'))))['token_label']
    except ValueError as error:
        assert str(file) in str(error)
    else:
        assert label.ndim == 4 and len(label) == 2 and label.dtype == np.float32
        assert np.isfinite(label).all() and (label[1] >= 0).all()
    file.unlink()


CELL = torch.ones(2, 1, 2, 2)
OBJECTS = [
    *(MAP.tolist(), dict(values=1), None, torch.ones(2, 3, 3), CELL.half(), CELL.int(), -CELL),
    *(CELL * float('nan'), CELL.cfloat(), torch.eye(2).to_sparse(), CELL[:, :0]),
]


@given(content=st.one_of(
    damaged(bytes_of(lambda file: torch.save(torch.from_numpy(MAP), file))),
    st.sampled_from(OBJECTS).map(lambda found: bytes_of(lambda file: torch.save(found, file))),
))  # fmt: skip
def test_label_maps_of_torch(folder, content):
    path = fresh(folder, '.pt')
    path.write_bytes(content)
    assert_loads_label(path)


@given(content=st.one_of(
    damaged(bytes_of(np.savez, values=MAP[0], ids=MAP[1])),
    st.dictionaries(st.sampled_from(['values', 'ids', 'other']), ARRAYS).map(lambda a: bytes_of(np.savez, **a)),
    ARRAYS.map(lambda array: bytes_of(np.save, array)),
    st.just(bytes_of(np.savez, values=np.array([None]), ids=MAP[1])),
))  # fmt: skip
def test_label_maps_of_numpy(folder, content):
    path = fresh(folder, '.npz')
    path.write_bytes(content)
    assert_loads_label(path)


# Arrays of the zero-shot, domain adaptation and multi-data-set papers

TABLE = np.random.RandomState(0).rand(3, 4).astype(np.float32)


@given(content=st.one_of(
    damaged(bytes_of(np.savez, names=np.array(['cat', 'dog', 'ü']), embeddings=TABLE)),
    st.dictionaries(st.sampled_from(['names', 'embeddings']), ARRAYS).map(lambda a: bytes_of(np.savez, **a)),
    ARRAYS.map(lambda array: bytes_of(np.savez, names=np.array(['cat', 'dog']), embeddings=array)),
    ARRAYS.map(lambda array: bytes_of(np.savez, names=array, embeddings=TABLE)),
    ARRAYS.map(lambda array: bytes_of(np.save, array)),
), names=st.lists(st.sampled_from(['cat', 'dog', 'ü', 'cow']), min_size=1, unique=True))  # fmt: skip
def test_category_embeddings(folder, content, names):
    path = fresh(folder, '.npz')
    path.write_bytes(content)
    try:
        vectors = embed_names(names, 'file', path=str(path))
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert len(vectors) == len(names) and vectors.dim() == 2
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(names)))
    path.unlink()


@given(
    content=st.one_of(
        damaged(bytes_of(np.save, np.ones((2, 3, 3)))), ARRAYS.map(lambda a: bytes_of(np.save, a))
    )
)
def test_soft_labels(folder, content):
    path = fresh(folder, '.npy')
    path.write_bytes(content)
    try:
        label = LoadSoftLabel(str(folder))(dict(img_path=f'{path.stem}.png'))['soft_label']
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert label.ndim == 3 and label.dtype == np.float32 and np.isfinite(label).all()
    path.unlink()


@given(
    content=st.one_of(damaged(bytes_of(np.save, TABLE)), ARRAYS.map(lambda a: bytes_of(np.save, a)))
)
def test_text_embeddings(folder, content):
    from mmextra.seg.tagclip import TagCLIP

    path = fresh(folder, '.npy')
    path.write_bytes(content)
    try:
        rows = TagCLIP._read_embedding(str(path), 4)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert rows.shape[1] == 4 and torch.isfinite(rows).all()
    path.unlink()


THRESHOLDS = json.dumps(dict(keep=0.8, images=2, thresholds=[0.5, 0.25, 0.0])).encode()


@given(content=st.one_of(
    damaged(THRESHOLDS),
    spoiled(json.loads(THRESHOLDS)).map(lambda content: json.dumps(content).encode()),
))  # fmt: skip
def test_thresholds(folder, content):
    from mmextra.seg.decouplenet import DecoupleSelfTraining

    path = fresh(folder, '.json')
    path.write_bytes(content)
    model = SimpleNamespace(_thresholds=None, threshold_source=str(path), num_classes=3)
    try:
        thresholds = DecoupleSelfTraining.thresholds.fget(model)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert thresholds.shape == (3,) and torch.isfinite(thresholds).all()
    path.unlink()


@given(content=st.one_of(
    damaged(bytes_of(np.save, np.ones((4, 3), np.int64))), ARRAYS.map(lambda a: bytes_of(np.save, a)),
    st.just(bytes_of(np.save, np.full((4, 3), -1))), st.just(bytes_of(np.save, np.zeros((4, 3)))),
))  # fmt: skip
def test_class_counts(folder, content):
    from mmextra.seg.decouplenet.data import DomainPairDataset

    path = fresh(folder, '.npy')
    path.write_bytes(content)
    dataset = SimpleNamespace(
        source=range(4), metainfo=dict(classes=['a', 'b', 'c']), class_counts=str(path)
    )
    try:
        counts = DomainPairDataset.count_pixels(dataset)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert counts.shape == (4, 3) and (counts >= 0).all() and counts.any()
    path.unlink()


# Data sets of METR

CLASSES = st.one_of(
    JSON,
    st.lists(st.one_of(st.sampled_from(['cat', 'dog', 'ü', '', ' ']), JSON), max_size=3),
)


@given(names=CLASSES)
def test_label_spaces(names):
    try:
        found = resolve_label_space('mine', names)
    except (ValueError, KeyError, TypeError) as error:
        assert 'mine' in str(error)
    else:
        assert found == tuple(names) and all(isinstance(n, str) and n.strip() for n in found)


@given(classes=CLASSES, space=st.sampled_from(['a', 'b', None]))
def test_label_spaces_of_data_sets(classes, space):
    from mmextra.det.metr.data import AttachLabelSpace

    steps = [AttachLabelSpace(space)] if space else []
    part = SimpleNamespace(
        pipeline=SimpleNamespace(transforms=steps),
        metainfo=dict(classes=classes),
        ann_file='a.json',
    )
    names = dict(a=('cat', 'dog'), c=('cow',))
    model = SimpleNamespace(label_spaces=SimpleNamespace(names=names))
    try:
        LabelSpaceCheckHook()._check(model, SimpleNamespace(datasets=[part]))
    except ValueError as error:
        assert 'a.json' in str(error)
    else:
        assert space == 'a' and tuple(classes) == ('cat', 'dog')


# Scripts


def png(image):
    return cv2.imencode('.png', image)[1].tobytes()


LABELS = np.arange(24, dtype=np.uint8).reshape(4, 6)
WIDE = np.random.RandomState(0).randint(0, 2**16, (4, 6, 3)).astype(np.uint16)
IMAGES = st.one_of(
    damaged(png(LABELS)),
    damaged(png(WIDE)),
    st.sampled_from([LABELS.astype(np.uint16), WIDE[..., 0], np.dstack([WIDE, WIDE[..., 0]])]).map(
        png
    ),
)


def run(main, arguments, capsys):
    """Exit code of a script, and what it says on the second stream."""
    capsys.readouterr()
    code = main([str(a) for a in arguments])
    return code, capsys.readouterr().err


@given(content=IMAGES, kind=st.sampled_from(['gta5', 'synthia']))
def test_train_ids(folder, tools, capsys, content, kind):
    source = folder / f'ids{next(NAMES)}'
    source.mkdir()
    (source / 'a.png').write_bytes(content)
    code, said = run(tools.train_ids.main, [kind, source, '--workers', 1], capsys)
    out = source / 'a_labelTrainIds.png'
    if code:
        assert str(source / 'a.png') in said and not out.exists()
    else:
        assert cv2.imread(str(out), cv2.IMREAD_UNCHANGED).dtype == np.uint8


VOC = """<annotation><size><width>64</width><height>48</height></size><object><name>RBC</name><bndbox><xmin>1</xmin>
<ymin>2</ymin><xmax>11</xmax><ymax>22</ymax></bndbox></object></annotation>"""
TAGS = 'annotation size width height object name bndbox xmin ymin xmax ymax'.split()
XML = st.one_of(
    damaged(VOC.encode()),
    st.tuples(st.sampled_from(TAGS), st.sampled_from(['', 'x'])).map(lambda t: VOC.replace(*t).encode()),
    st.tuples(
        st.sampled_from(['>1<', '>2<', '>11<', '>22<', '>64<', '>RBC<']),
        st.sampled_from(['nan', 'inf', '-5', '', 'RBC', '1e3', 'WBC', 'ü']),
    ).map(lambda t: VOC.replace(t[0], f'>{t[1]}<').encode()),
)  # fmt: skip
BOX = dict(id=1, image_id=1, category_id=1, bbox=[1, 2, 3, 4], area=12, iscrowd=0)
COCO = dict(
    images=[dict(id=i, file_name=f'{i}.jpg', width=8, height=8) for i in (1, 2)],
    annotations=[BOX, dict(BOX, id=2, image_id=2)],
    categories=[dict(id=1, name='cat')],
)
COCOS = st.one_of(
    damaged(json.dumps(COCO).encode()),
    spoiled(COCO).map(lambda content: json.dumps(content).encode()),
)
CSV = 'date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT\n2016-07-01 00:00:00,1,2,3,4,5,6,7\n'
SEGMENTS = np.minimum(LABELS, 11)


def bccd(root, content):
    for name in ('Annotations', 'ImageSets/Main', 'JPEGImages'):
        (root / name).mkdir(parents=True)
    for split in ('trainval', 'test'):
        (root / 'ImageSets/Main' / f'{split}.txt').write_text('a\n')
    (root / 'JPEGImages' / 'a.jpg').write_text('image')
    (root / 'Annotations' / 'a.xml').write_bytes(content)
    return root / 'Annotations' / 'a.xml'


def coco128(root, content):
    (root / 'annotations').mkdir(parents=True)
    for split in ('train2017', 'val2017'):
        (root / split).mkdir()
        for i in (1, 2):
            (root / split / f'{i}.jpg').write_text('image')
        file = root / 'annotations' / f'instances_{split}.json'
        file.write_text(json.dumps(COCO))
    file.write_bytes(content)
    return file


def camvid(root, content):
    for split in ('train', 'val', 'test'):
        for name in (split, f'{split}annot'):
            (root / name).mkdir(parents=True)
        (root / split / 'x.png').write_bytes(png(np.zeros((4, 6, 3), np.uint8)))
        (root / f'{split}annot' / 'x.png').write_bytes(content)
    return root / 'trainannot' / 'x.png'


def camvid_images(root, content):
    file = camvid(root, png(SEGMENTS)).parents[1] / 'train' / 'x.png'
    file.write_bytes(content)
    return file


def ett(root, content):
    root.mkdir()
    for name in ('ETTh2.csv', 'ETTh1.csv'):
        (root / name).write_text(CSV)
    (root / 'ETTh1.csv').write_bytes(content)
    return root / 'ETTh1.csv'


def dota_sample(root, content):
    for name in ('images', 'labelTxt'):
        (root / name).mkdir(parents=True)
    (root / 'images' / 'P1.png').write_text('image')
    (root / 'labelTxt' / 'P1.txt').write_bytes(content)
    return root / 'labelTxt' / 'P1.txt'


def dota_split(root, content):
    file = dota_sample(root, content)
    (root / 'images' / 'P1.png').write_bytes(png(np.zeros((40, 40, 3), np.uint8)))
    return file


def cifar10(root, content, name='data_batch_1.bin'):
    root.mkdir()
    (root / name).write_bytes(content)
    return root / name


def cifar10_pickle(root, content):
    return cifar10(root, content, 'data_batch_1')


BATCH = np.zeros((1, 3073), np.uint8).tobytes()
PICKLE = pickle.dumps({b'data': np.zeros((1, 3072), np.uint8), b'labels': [3]}, protocol=3)
DOWNLOADS = {
    'bccd': (bccd, XML),
    'coco128': (coco128, COCOS),
    'camvid': (camvid, st.one_of(damaged(png(SEGMENTS)), IMAGES)),
    'camvid images': (camvid_images, st.one_of(damaged(png(np.zeros((4, 6, 3), np.uint8))), IMAGES)),
    'ett': (ett, st.one_of(damaged(CSV.encode()), st.just(CSV.replace('7', 'x').encode()))),
    'dota-sample': (dota_sample, TEXTS),
    'dota-split': (dota_split, TEXTS),
    'cifar10': (cifar10, st.one_of(damaged(BATCH), st.just(b'\x0b' + BATCH[1:]))),
    'cifar10 pickle': (cifar10_pickle, damaged(PICKLE)),
}  # fmt: skip


@pytest.mark.parametrize('name', DOWNLOADS)
@given(data=st.data())
def test_downloads(folder, tools, capsys, name, data):
    lay_out, contents = DOWNLOADS[name]
    root, out = (folder / f'{kind}{next(NAMES)}' for kind in ('source', 'out'))
    file = lay_out(root, data.draw(contents, 'file'))
    options = ['--workers', 1] if name == 'dota-split' else []
    command = [name.split()[0], '--source', root, '--out', out, *options]
    code, said = run(tools.prepare_data.main, command, capsys)
    if code:
        assert code == 1 and said.startswith('error: ') and str(file) in said, said
        assert not out.exists()
    else:
        assert (out / 'checksums.txt').is_file()


@given(content=damaged(bytes_of(lambda f: zipfile.ZipFile(f, 'w').writestr('a/ETTh1.csv', CSV))))
def test_archives(folder, tools, capsys, content):
    path, out = fresh(folder, '.zip'), folder / f'out{next(NAMES)}'
    path.write_bytes(content)
    code, said = run(tools.prepare_data.main, ['ett', '--source', path, '--out', out], capsys)
    assert code == 1 and said.startswith('error: ') and not out.exists()
    path.unlink()
