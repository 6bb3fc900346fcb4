import cv2
import numpy as np
import pytest


@pytest.fixture
def prepare(tool):
    main = tool('prepare_data.py').main
    return lambda *args: main([str(a) for a in args])


@pytest.fixture
def draw(tool):
    module = tool('rotated_rectangles.py')
    return lambda index, size=96: module.draw(np.random.RandomState([0, 0, index]), size, size)


def read(folder, name):
    """Corners (n, 4, 2) and classes of an annotation file."""
    rows = [line.split() for line in (folder / 'annfiles' / f'{name}.txt').read_text().splitlines()]
    assert all(len(row) == 10 and row[9] == '0' for row in rows)
    return np.array([row[:8] for row in rows], float).reshape(-1, 4, 2), [row[8] for row in rows]


def test_the_set_is_in_dota_format(prepare, tmp_path):
    out = tmp_path / 'rectangles'
    assert (
        prepare('rotated-rectangles', '--out', out, '--train', 3, '--val', 2, '--size', '96x64')
        == 0
    )
    for split, count in (('train', 3), ('val', 2)):
        images = sorted((out / split / 'images').glob('*.png'))
        assert len(images) == count
        for image in images:
            assert cv2.imread(str(image)).shape == (64, 96, 3)
            corners, classes = read(out / split, image.stem)
            assert 1 <= len(corners) <= 4 and set(classes) <= {'orange', 'blue'}
            assert (corners >= 0).all() and (corners <= (96, 64)).all()


def test_a_seed_gives_the_same_files(prepare, tmp_path):
    small = ['--train', 2, '--val', 1, '--size', '64x64']
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        assert prepare('rotated-rectangles', '--out', tmp_path / name, *small, '--seed', seed) == 0
    a, b, c = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob('*.png')}
        for n in 'abc'
    )
    assert a == b and a != c
    assert prepare('rotated-rectangles', '--out', tmp_path / 'a', *small, '--seed', 1) == 1


def test_rectangles_are_three_times_as_long_as_broad_and_apart(draw):
    for index in range(20):
        _, rectangles = draw(index)
        for one in rectangles:
            sides = sorted(cv2.minAreaRect(one.corners.astype(np.float32))[1])
            assert sides[1] / sides[0] == pytest.approx(3, rel=1e-3)
        for i, one in enumerate(rectangles):
            for other in rectangles[:i]:
                area, _ = cv2.intersectConvexConvex(
                    *(r.corners.astype(np.float32) for r in (one, other))
                )
                assert area == 0


def test_pixels_are_where_the_annotations_say(draw):
    """Inside, the colour of the class; outside, dark."""
    for index in range(5):
        image, rectangles = draw(index)
        outside = np.ones(image.shape[:2], np.uint8)
        for label, corners in rectangles:
            inside = np.zeros(image.shape[:2], np.uint8)
            shrunk = corners.mean(0) + (corners - corners.mean(0)) * 0.8
            cv2.fillPoly(inside, [np.rint(shrunk - 0.5).astype(int)], 1)
            red, _, blue = image[inside == 1].mean(0)
            assert (red > blue + 80) if label == 0 else (blue > red + 80)
            grown = corners.mean(0) + (corners - corners.mean(0)) * 1.2
            cv2.fillPoly(outside, [np.rint(grown - 0.5).astype(int)], 0)
        assert image[outside == 1].mean() < 80
