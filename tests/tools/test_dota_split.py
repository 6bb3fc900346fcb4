import cv2
import numpy as np
import pytest


@pytest.fixture
def split(tool):
    return tool('dota_split.py')


@pytest.fixture
def prepare(tool):
    main = tool('prepare_data.py').main
    return lambda *args: main(['dota-split', *map(str, args)])


@pytest.fixture
def source(tmp_path):
    """Two images of random pixels with a few objects."""
    for folder in ('images', 'labelTxt'):
        (tmp_path / 'DOTA' / folder).mkdir(parents=True)
    random = np.random.RandomState(0)
    for name, (height, width), lines in (
        ('P1', (150, 200), ['10 10 30 10 30 20 10 20 ship 0', '90 5 110 5 110 15 90 15 plane 1']),
        ('P2', (40, 50), ['5 5 15 5 15 9 5 9 ship']),
    ):
        pixels = random.randint(0, 256, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / 'DOTA' / 'images' / f'{name}.png'), pixels)
        header = ['imagesource:GoogleEarth', 'gsd:0.3']
        (tmp_path / 'DOTA' / 'labelTxt' / f'{name}.txt').write_text('\n'.join(header + lines))
    return tmp_path / 'DOTA'


SMALL = ['--size', 64, '--gap', 16, '--workers', 1]


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


# Windows


def test_windows_cover_the_image_and_stay_inside(split):
    windows = split.windows_of(2500, 1800, split.Settings())
    assert sorted(set(windows[:, 0])) == [0, 824, 1476] and sorted(set(windows[:, 1])) == [0, 776]
    assert len(windows) == 6 and (windows[:, 2:] - windows[:, :2] == 1024).all()
    exact = split.windows_of(1024 + 824, 1024, split.Settings())
    assert exact.tolist() == [[0, 0, 1024, 1024], [824, 0, 1848, 1024]]


def test_windows_with_little_image_are_left_out_unless_all_are(split):
    few = split.windows_of(1024, 1100, split.Settings(gap=0))  # the second is shifted back: whole
    assert few.tolist() == [[0, 0, 1024, 1024], [0, 76, 1024, 1100]]
    # A strip: all windows have the same, small part of image.
    assert len(split.windows_of(600, 2000, split.Settings())) == 3
    sizes = split.windows_of(700, 700, split.Settings(rates=(1.0, 1.4)))
    assert sizes.tolist() == [[0, 0, 731, 731]]  # the window at rate 1 is 47 % image
    assert split.windows_of(100, 100, split.Settings()).tolist() == [[0, 0, 1024, 1024]]


def test_windows_of_several_scales(split):
    settings = split.Settings(gap=500, rates=(0.5, 1.0, 1.5))
    windows = split.windows_of(2500, 2500, settings)
    sizes, counts = np.unique(windows[:, 2] - windows[:, 0], return_counts=True)
    assert sizes.tolist() == [682, 1024, 2048]
    # At rate 1: 1 + ceil((2500 - 1024) / 524) = 4 a side.
    assert counts.tolist() == [7 * 7, 4 * 4, 2 * 2]


def test_which_part_of_an_object_is_inside(split):
    quads = np.array([[0, 0, 10, 0, 10, 10, 0, 10], [5, 0, 10, 5, 5, 10, 0, 5.0]])
    window = np.array([0, 0, 7, 100])
    assert split.parts_inside(quads, window).tolist() == [0.7, 0.7]  # of their horizontal boxes
    assert split.parts_inside(quads, np.array([20, 20, 30, 30])).tolist() == [0, 0]


def test_objects_of_a_window(split):
    objects = split.Objects(
        np.array([[0, 0, 10, 0, 10, 10, 0, 10], [95, 0, 105, 0, 105, 10, 95, 10.0]]),
        ['ship', 'plane'],
        ['1', '0'],
    )
    window = np.array([2, 0, 102, 100])
    chosen, lines = split.objects_in(objects, window, split.Settings())
    assert chosen.tolist() == [0, 1]
    assert lines.splitlines()[0] == '-2.0 0.0 8.0 0.0 8.0 10.0 -2.0 10.0 ship 2'  # cut on the left
    assert lines.splitlines()[1].endswith(' plane 2')
    chosen, lines = split.objects_in(objects, np.array([0, 0, 101, 100]), split.Settings())
    assert chosen.tolist() == [0] and lines.endswith(' ship 1\n')


# The command


@pytest.mark.parametrize('workers', [1, 2])
def test_patches_hold_the_pixels_and_objects_of_the_image(
    prepare, source, tmp_path, capsys, workers
):
    out = tmp_path / 'patches'
    assert prepare('--source', source, '--out', out, *SMALL[:4], '--workers', workers) == 0
    assert '2 images: 13 patches; 3 objects, 0 of them in no patch' in capsys.readouterr().out
    image = cv2.imread(str(source / 'images' / 'P1.png'))
    names = sorted(p.stem for p in (out / 'images').iterdir())
    assert len(names) == 13 and names == sorted(p.stem for p in (out / 'annfiles').iterdir())
    for name in names[:12]:
        x, y = map(int, name.split('__', 2)[2].split('___'))
        pixels = cv2.imread(str(out / 'images' / f'{name}.png'))
        assert np.array_equal(pixels, image[y : y + 64, x : x + 64])
    padded = cv2.imread(str(out / 'images' / 'P2__64__0___0.png'))
    assert padded.shape == (64, 64, 3) and (padded[40:] == (104, 116, 124)).all()
    line = (out / 'annfiles' / 'P2__64__0___0.txt').read_text()
    assert line == '5.0 5.0 15.0 5.0 15.0 9.0 5.0 9.0 ship 0\n'
    assert (out / 'annfiles' / 'P1__64__0___86.txt').read_text() == ''


def test_the_data_set_reads_the_patches(prepare, source, tmp_path):
    from mmextra.registry import DATASETS

    prepare('--source', source, '--out', tmp_path / 'patches', *SMALL)
    data = DATASETS.build(
        dict(
            type='OrientedDOTADataset',
            data_root=str(tmp_path / 'patches'),
            ann_file='annfiles/',
            data_prefix=dict(img_path='images/'),
        )
    )
    infos = [data.get_data_info(i) for i in range(len(data))]
    assert len(data) == 13 and sum(len(i['instances']) for i in infos) == 4


def test_a_second_call_has_nothing_to_do(prepare, source, tmp_path, capsys):
    command = ['--source', source, '--out', tmp_path / 'patches', *SMALL]
    assert prepare(*command) == 0 and prepare(*command) == 0
    assert 'complete, all checksums hold' in capsys.readouterr().out
    assert prepare(*command[:4], '--size', 32, '--gap', 4) == 1
    assert 'add --force' in capsys.readouterr().err


def test_what_was_broken_off_goes_on(prepare, tool, source, tmp_path, monkeypatch, capsys):
    command = ['--source', source, '--out', tmp_path / 'patches', *SMALL]
    module = tool('prepare_data.py').dota_split
    whole, seen = module.cut_image, []

    def broken(job):
        seen.append(job[0].stem)
        if job[0].stem == 'P2' and seen.count('P2') == 1:
            raise KeyboardInterrupt
        return whole(job)

    monkeypatch.setattr(module, 'cut_image', broken)
    with pytest.raises(KeyboardInterrupt):
        prepare(*command)
    assert not (tmp_path / 'patches').exists()
    assert prepare(*command) == 0 and seen == ['P1', 'P2', 'P2']
    out = capsys.readouterr().out
    assert '1 of 2 images were done before' in out
    assert '2 images: 13 patches; 3 objects' in out
    assert not [p for p in tmp_path.iterdir() if p.name.startswith('.')]
    monkeypatch.undo()
    prepare('--source', source, '--out', tmp_path / 'again', *SMALL)
    assert files(tmp_path / 'patches') == files(tmp_path / 'again')


def test_unfinished_work_with_other_settings_is_not_used(
    prepare, tool, source, tmp_path, monkeypatch
):
    module = tool('prepare_data.py').dota_split
    whole = module.cut_image

    def broken(job):
        if job[0].stem == 'P2':
            raise KeyboardInterrupt
        return whole(job)

    monkeypatch.setattr(module, 'cut_image', broken)
    command = ['--source', source, '--out', tmp_path / 'patches', '--workers', 1]
    with pytest.raises(KeyboardInterrupt):
        prepare(*command, '--size', 64, '--gap', 16)
    monkeypatch.undo()
    assert prepare(*command, '--size', 100, '--gap', 20) == 0
    sizes = {p.stem.split('__')[1] for p in (tmp_path / 'patches' / 'images').iterdir()}
    assert sizes == {'100'}


def test_images_without_labels_and_several_sources(prepare, source, tmp_path, capsys):
    other = tmp_path / 'test' / 'images'
    other.mkdir(parents=True)
    cv2.imwrite(str(other / 'P3.png'), np.zeros((20, 20, 3), np.uint8))
    assert prepare('--source', other.parent, '--out', tmp_path / 'images-only', *SMALL) == 0
    assert not (tmp_path / 'images-only' / 'annfiles').exists()
    assert prepare('--source', source, other.parent, '--out', tmp_path / 'mixed', *SMALL) == 1
    assert '1 of 3 images have no labels' in capsys.readouterr().err
    assert prepare('--source', source, source, '--out', tmp_path / 'twice', *SMALL) == 1
    assert '2 names are there more than once, such as P1' in capsys.readouterr().err


def test_bad_input(prepare, source, tmp_path, capsys):
    assert prepare('--source', tmp_path / 'none', '--out', tmp_path / 'a', *SMALL) == 1
    assert 'holds no images' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        prepare('--source', source, '--size', 64, '--gap', 64)
    with pytest.raises(SystemExit):
        prepare('--source', source, '--rates', 0)
    (source / 'labelTxt' / 'P2.txt').write_text('1 2 3 4 5 6 7 8')
    assert prepare('--source', source, '--out', tmp_path / 'b', *SMALL) == 1
    assert 'P2.txt:1: expected x1 y1' in capsys.readouterr().err
    (source / 'labelTxt' / 'P2.txt').write_text('')
    (source / 'images' / 'P2.png').write_bytes(b'no image')
    assert prepare('--source', source, '--out', tmp_path / 'c', *SMALL[:4], '--workers', 2) == 1
    assert 'P2.png cannot be read as an image' in capsys.readouterr().err
