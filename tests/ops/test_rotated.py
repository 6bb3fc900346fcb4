import math

import cv2
import numpy as np
import pytest
import torch
from mmcv.ops import box_iou_rotated

from mmextra.ops.rotated import (
    angle_difference,
    enclosing_boxes,
    gaussian_distance,
    oriented_corners,
    oriented_gaussians,
    oriented_l1,
    points_in_boxes,
    regularize_boxes,
    rotated_iou,
)

SQUARE = torch.tensor([[3.0, 4.0, 2.0, 2.0, 0.0]])


def random_boxes(count, dtype=torch.float32, spread=50.0):
    box = torch.rand(count, 5, dtype=torch.float64)
    low = torch.tensor([0, 0, 1, 1, -7], dtype=torch.float64)
    high = torch.tensor([spread, spread, 60, 60, 7], dtype=torch.float64)
    return (low + box * (high - low)).to(dtype)


def same_corners(a, b, atol=1e-4):
    """Whether two sets of boxes have the same corners, in any order."""
    distance = torch.cdist(oriented_corners(a), oriented_corners(b))
    return bool((distance.amin(-1) < atol).all() and (distance.amin(-2) < atol).all())


# Shapes and angles


def test_corners_turn_clockwise_on_a_screen():
    box = torch.tensor([10.0, 20.0, 6.0, 2.0, math.pi / 2])
    # The width, turned by a quarter from pointing right, points down.
    expected = [[9, 23], [11, 23], [11, 17], [9, 17]]
    assert np.allclose(oriented_corners(box), expected, atol=1e-5)


def test_enclosing_boxes_are_those_of_the_corners():
    boxes = random_boxes(50, torch.float64)
    corners = oriented_corners(boxes)
    expected = torch.cat([corners.amin(1), corners.amax(1)], 1)
    torch.testing.assert_close(enclosing_boxes(boxes), expected)


@pytest.mark.parametrize(
    'pattern, low, high', [('le90', -90, 90), ('le135', -45, 135), ('oc', -90, 0)]
)
def test_regularized_boxes_are_the_same_rectangles_in_the_range(pattern, low, high):
    boxes = random_boxes(200, torch.float64)
    found = regularize_boxes(boxes, pattern)
    degrees = found[:, 4].rad2deg()
    assert (degrees >= low - 1e-9).all() and (degrees < high).all()
    assert same_corners(boxes, found)
    if pattern != 'oc':
        assert (found[:, 2] >= found[:, 3]).all()
    torch.testing.assert_close(regularize_boxes(found, pattern), found)


def test_an_unknown_angle_pattern_is_named():
    with pytest.raises(ValueError, match="'le180'"):
        regularize_boxes(SQUARE, 'le180')


def test_points_in_boxes_agrees_with_opencv():
    boxes, points = random_boxes(6), torch.rand(200, 2) * 50
    found = points_in_boxes(points[:, None], boxes[None])
    for i, corners in enumerate(oriented_corners(boxes).numpy()):
        expected = [cv2.pointPolygonTest(corners, p, False) >= 0 for p in points.tolist()]
        assert found[:, i].tolist() == expected


# Intersection over union


def clipped_area(first, second):
    """Area of the intersection of two boxes by clipping one polygon with the sides of the other:
    the slow way."""
    polygon = oriented_corners(first).tolist()
    corners = oriented_corners(second).tolist()
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1]):
        # Corners run counter-clockwise on a screen: inside is where this is not positive.
        side = [(bx - ax) * (y - ay) - (by - ay) * (x - ax) for x, y in polygon]
        clipped = []
        for i, (p, s) in enumerate(zip(polygon, side)):
            q, t = polygon[i - 1], side[i - 1]
            if s * t < 0:
                r = t / (t - s)
                clipped.append([q[0] + r * (p[0] - q[0]), q[1] + r * (p[1] - q[1])])
            if s <= 0:
                clipped.append(p)
        polygon = clipped
        if not polygon:
            return 0.0
    return (
        abs(sum(polygon[i - 1][0] * y - polygon[i - 1][1] * x for i, (x, y) in enumerate(polygon)))
        / 2
    )


def test_iou_of_known_pairs():
    pred = torch.tensor([[0, 0, 2, 2, 0.0], [0, 0, 4, 2, 0], [5, 5, 3, 2, 0.5], [0, 0, 2, 2, 0]])
    target = torch.tensor(
        [[0, 0, 2, 2, math.pi / 4], [0, 0, 4, 2, math.pi / 2], [5, 5, 3, 2, 0.5], [9, 0, 2, 2, 0]]
    )
    expected = torch.tensor([math.sqrt(0.5), 1 / 3, 1.0, 0.0])
    torch.testing.assert_close(rotated_iou(pred, target), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_iou_agrees_with_mmcv_and_with_clipping(dtype):
    pred, target = random_boxes(2000, dtype), random_boxes(2000, dtype)
    found = rotated_iou(pred, target)
    reference = box_iou_rotated(pred.float(), target.float(), aligned=True)
    assert found.dtype == dtype
    assert (found - reference).abs().max() < 1e-5
    for a, b, value in zip(pred[:100].double(), target[:100].double(), found.tolist()):
        shared = clipped_area(a, b)
        assert value == pytest.approx(
            float(shared / (a[2] * a[3] + b[2] * b[3] - shared)), abs=1e-6
        )
    area = pred[:, 2] * pred[:, 3]
    iof = rotated_iou(pred, target, mode='iof')
    reference = box_iou_rotated(pred.float(), target.float(), mode='iof', aligned=True)
    assert (iof - reference).abs().max() < 1e-5 and area.min() > 0


def test_iou_does_not_feel_how_a_rectangle_is_described():
    boxes = random_boxes(100, torch.float64)
    quarter = torch.tensor([0, 0, 0, 0, math.pi / 2], dtype=torch.float64)
    swapped = boxes[:, [0, 1, 3, 2, 4]] + quarter
    torch.testing.assert_close(rotated_iou(boxes, swapped), torch.ones(100, dtype=torch.float64))
    for kind in ('gwd', 'kld'):
        other = random_boxes(100, torch.float64)
        torch.testing.assert_close(
            gaussian_distance(boxes, other, kind), gaussian_distance(swapped, other, kind)
        )


@pytest.mark.parametrize('change', [1e-7, 1e-6, 1e-4])
def test_iou_of_boxes_that_are_nearly_equal(change):
    """mmcv's box_iou_rotated is off by up to 1 here."""
    boxes = random_boxes(2000)
    other = boxes * (1 + change * torch.randn(2000, 5))
    exact = rotated_iou(boxes.double(), other.double())
    assert (rotated_iou(boxes, other) - exact).abs().max() < 1e-6
    assert exact.min() > 1 - 500 * change  # slivers of one pixel and 60 pixels away from the origin


def test_iou_does_not_change_when_everything_is_turned_and_moved():
    pred, target = random_boxes(200, torch.float64), random_boxes(200, torch.float64)
    before = rotated_iou(pred, target)
    angle = 0.7
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]],
        dtype=torch.float64,
    )
    after = rotated_iou(
        *(
            torch.cat([b[:, :2] @ turn.T + 1000, b[:, 2:4], b[:, 4:] + angle], 1)
            for b in (pred, target)
        )
    )
    torch.testing.assert_close(before, after)


def test_gradcheck():
    pred = random_boxes(15, torch.float64, 20).requires_grad_()
    target = random_boxes(15, torch.float64, 20).requires_grad_()
    assert torch.autograd.gradcheck(rotated_iou, (pred, target))
    assert torch.autograd.gradcheck(lambda a, b: rotated_iou(a, b, 'iof'), (pred, target))
    for kind in ('gwd', 'kld'):
        assert torch.autograd.gradcheck(
            lambda a, b, kind=kind: gaussian_distance(a, b, kind, alpha=2.0), (pred, target)
        )


@pytest.mark.parametrize('turn', [0.0, 1e-7, 1e-5, 1e-3])
@pytest.mark.parametrize('shift', [0.0, 3.0])
def test_the_gradient_is_bounded_where_sides_are_nearly_parallel(turn, shift):
    target = random_boxes(500)
    pred = target + torch.tensor([0, 0, 0, 0, turn]) * torch.randn(500, 1)
    pred[:, 0] += shift * pred[:, 4].cos()
    pred[:, 1] += shift * pred[:, 4].sin()
    pred.requires_grad_()
    iou = rotated_iou(pred, target)
    assert (iou - rotated_iou(pred.double(), target.double())).abs().max() < 1e-6
    iou.sum().backward()
    short = pred[:, 2:4].detach().amin(1, keepdim=True)
    assert pred.grad.isfinite().all()
    assert (pred.grad[:, :4] * short).abs().max() < 3  # at most about 1 over the short side


def test_iou_of_boxes_without_area_and_of_none():
    point = torch.tensor([[3.0, 4.0, 0.0, 0.0, 0.3]], requires_grad=True)
    assert rotated_iou(point, point).item() == 0
    iou = rotated_iou(point, SQUARE)
    iou.sum().backward()
    assert iou.item() == 0 and point.grad.isfinite().all()
    assert rotated_iou(torch.zeros(0, 5), torch.zeros(0, 5)).shape == (0,)


def test_iou_broadcasts_and_half_precision_is_raised():
    pred, target = random_boxes(3), random_boxes(4)
    matrix = rotated_iou(pred[:, None], target[None])
    torch.testing.assert_close(matrix, box_iou_rotated(pred, target), rtol=0, atol=1e-5)
    assert rotated_iou(pred.half(), pred.half()).dtype == torch.float32


@pytest.mark.parametrize('size', [50.0, 1000.0])
def test_iou_does_not_depend_on_the_device(size, monkeypatch):
    """mmcv's operator for CUDA, off by up to 1 for boxes that share sides, is not used."""
    monkeypatch.setattr(torch.Tensor, 'is_cuda', True)
    monkeypatch.setattr('mmcv.ops.get_compiling_cuda_version', lambda: '12.1')
    monkeypatch.setattr('mmcv.ops.diff_iou_rotated_2d', lambda a, b: a.new_zeros(a.shape[:2]))
    boxes = random_boxes(50, spread=size)
    for target in (boxes, boxes.double()):
        found = rotated_iou(boxes.to(target.dtype), target)
        torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=1e-5)


def test_iou_in_mixed_precision_is_that_of_float32():
    pred, target = random_boxes(50, spread=1000.0), random_boxes(50, spread=1000.0)
    pred[:25] = target[:25] + 0.5
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = rotated_iou(pred, target)
    assert torch.equal(found, rotated_iou(pred, target))


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match="'giou'"):
        rotated_iou(SQUARE, SQUARE, mode='giou')


# Differences


def test_angles_differ_by_no_more_than_a_quarter_turn():
    low, high = math.radians(-89.9), math.radians(89.9)
    pair = torch.tensor([low]), torch.tensor([high])
    assert angle_difference(*pair).item() == pytest.approx(0.2 / 180, abs=1e-5)
    assert angle_difference(*pair, mode='plain').item() == pytest.approx(179.8 / 180, abs=1e-5)
    angles = torch.linspace(-7, 7, 101)
    loops = [min(abs(a) / math.pi % 1, 1 - abs(a) / math.pi % 1) for a in angles.tolist()]
    assert np.allclose(angle_difference(angles, torch.zeros(())), loops, atol=1e-5)
    with pytest.raises(ValueError, match="'cosine'"):
        angle_difference(*pair, mode='cosine')


def test_oriented_l1_in_loops():
    pred, target, factor = random_boxes(3), random_boxes(2), torch.tensor([40.0, 30.0, 40.0, 30.0])
    found = oriented_l1(pred[:, None], target[None], factor, 'plain', square_aware=True)
    for i, p in enumerate(pred.tolist()):
        for j, t in enumerate(target.tolist()):
            expected = [abs(p[k] - t[k]) / factor[k].item() for k in range(4)]
            slim = 1 - min(t[2:4]) / max(t[2:4])
            expected.append(abs(p[4] - t[4]) / math.pi * slim)
            assert np.allclose(found[i, j], expected, atol=1e-5)


def test_gaussians_of_boxes():
    box = torch.tensor([1.0, 2.0, 6.0, 2.0, math.pi / 2])
    mean, covariance = oriented_gaussians(box)
    assert mean.tolist() == [1, 2]
    assert np.allclose(covariance, [[1, 0], [0, 9]], atol=1e-5)


def test_gaussian_distances_by_matrices():
    pred, target = random_boxes(20, torch.float64), random_boxes(20, torch.float64)
    found = {k: gaussian_distance(pred, target, k, alpha=1.5) for k in ('gwd', 'kld')}
    for i in range(20):
        (m, s), (n, t) = (oriented_gaussians(b[i]) for b in (pred, target))
        s, t, d = s.numpy(), t.numpy(), (m - n).numpy()
        root = lambda a: (lambda v, q: q @ np.diag(np.sqrt(v)) @ q.T)(*np.linalg.eigh(a))  # noqa: E731
        cross = np.trace(root(root(s) @ t @ root(s)))
        gwd = math.sqrt(d @ d + 1.5**2 * (np.trace(s) + np.trace(t) - 2 * cross))
        gwd /= 2 * (np.linalg.det(s) * np.linalg.det(t)) ** 0.125
        inverse = np.linalg.inv(s)
        kld = d @ inverse @ d / 2 / 1.5**2 + np.trace(inverse @ t) / 2 - 1
        kld += math.log(np.linalg.det(s) / np.linalg.det(t)) / 2
        assert found['gwd'][i].item() == pytest.approx(gwd, rel=1e-6)
        assert found['kld'][i].item() == pytest.approx(math.sqrt(kld), rel=1e-6)


def test_radicands_of_the_wasserstein_distance_are_at_least_1e_7():
    """Boxes much smaller than a pixel: sqrt(det det') counts as sqrt(1e-7)."""
    pred = torch.tensor([0.0, 0.0, 0.1, 0.2, 0.0], dtype=torch.float64)
    target = torch.tensor([0.3, 0.4, 0.2, 0.1, 0.0], dtype=torch.float64)
    product, traces, root = 2 * 0.05**2 * 0.1**2, 2 * (0.05**2 + 0.1**2), math.sqrt(1e-7)
    expected = math.sqrt(0.25 + traces - 2 * math.sqrt(product + 2 * root)) / (2 * root**0.25)
    assert gaussian_distance(pred, target).item() == pytest.approx(expected, rel=1e-9)


def test_an_unknown_gaussian_distance_is_named():
    with pytest.raises(ValueError, match="'bcd'"):
        gaussian_distance(SQUARE, SQUARE, 'bcd')
