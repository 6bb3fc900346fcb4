import logging
import math
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from mmcv.ops import box_iou_rotated
from mmdet.structures.bbox import HorizontalBoxes, get_box_type
from mmdet.structures.mask import BitmapMasks, PolygonMasks

from mmextra.det.oriented import OrientedGDLoss
from mmextra.ops.rotated import oriented_corners
from mmextra.structures.oriented_boxes import (
    OrientedBoxes,
    boxes_to_quads,
    oriented_nms,
    oriented_overlaps,
    quads_to_boxes,
)


def random_boxes(count, spread=50.0):
    low = torch.tensor([0, 0, 1, 1, -math.pi])
    return low + torch.rand(count, 5) * torch.tensor([spread, spread, 60, 60, 2 * math.pi])


def same_corners(a, b, atol=1e-3):
    distance = torch.cdist(oriented_corners(a), oriented_corners(b))
    return bool((distance.amin(-1) < atol).all() and (distance.amin(-2) < atol).all())


# Against mmrotate


def changed(boxes, method, *args):
    copy = OrientedBoxes(boxes)
    getattr(copy, method)(*args)
    return copy.tensor


def stated(notes, pattern):
    """Numbers of the notes of the golden file."""
    return [float(v) for v in re.search(pattern, notes).groups()]


def scale_between(before, after):
    """The factors that the file does not state, from the centre of its first box."""
    return tuple((after[0, :2] / before[0, :2]).round(decimals=3).tolist())


@pytest.mark.golden('o2detr', 'oriented_boxes*')
def test_oriented_boxes(case):
    boxes, targets = case.inputs['boxes'], case.inputs['targets']
    notes, out = case.meta['notes'], case.outputs
    height, width = map(int, stated(notes, r'img_shape=\(h=(\d+),w=(\d+)\)'))
    x, y, degrees = stated(notes, r'centre \((\d+),(\d+)\) by ([+-]?\d+) degrees')
    distances = tuple((out['translate'] - boxes)[0, :2].round(decimals=3).tolist())
    found = dict(
        corners=OrientedBoxes(boxes).corners,
        quad=boxes_to_quads(boxes),
        hbox=OrientedBoxes(boxes).convert_to('hbox').tensor,
        rotate_30=changed(boxes, 'rotate_', (x, y), degrees),
        translate=changed(boxes, 'translate_', distances),
        inside=OrientedBoxes(boxes).find_inside_points(case.inputs['points']),
        iou=OrientedBoxes.overlaps(OrientedBoxes(boxes), OrientedBoxes(boxes)),
    )
    for pattern in ('oc', 'le90', 'le135'):
        found[f'reg_{pattern}'] = OrientedBoxes(boxes).regularize(pattern).tensor
    for direction in ('horizontal', 'vertical', 'diagonal'):
        found[f'flip_{direction}'] = changed(boxes, 'flip_', (height, width), direction)
    for kind in ('iso', 'aniso'):
        factors = scale_between(boxes, out[f'rescale_{kind}'])
        found[f'rescale_{kind}'] = changed(boxes, 'rescale_', factors)
    grads = {}
    for kind in ('gwd', 'kld'):
        pred = boxes.clone().requires_grad_()
        loss = OrientedGDLoss(kind, reduction='none')(pred, targets)
        loss.sum().backward()
        found[f'loss_{kind}'], grads[kind] = loss, pred.grad
    case.check(found, grads)


# The box type


def test_the_box_type_is_beside_those_of_mmrotate():
    name, cls = get_box_type('obox')
    assert (name, cls) == ('obox', OrientedBoxes)
    for taken in ('rbox', 'qbox'):
        with pytest.raises(AssertionError):
            get_box_type(taken)


MMROTATE = """
import os
from mmdet.structures.bbox import HorizontalBoxes, box_type, register_box, register_box_converter
def mmrotate():
    for name in ('rbox', 'qbox'):
        register_box(name)(type(name, (HorizontalBoxes,), dict(box_dim=5)))
    register_box_converter('hbox', 'rbox')(lambda boxes: boxes)
    register_box_converter('rbox', 'hbox')(lambda boxes: boxes)
def mmextra():
    from mmextra.registry import DATASETS
    DATASETS.get('OrientedDOTADataset')
for order in ((mmextra, mmrotate), (mmrotate, mmextra)):
    child = os.fork()
    if not child:
        for step in order:
            step()
        assert {k: v.__name__ for k, v in box_type.box_types.items()} == dict(
            hbox='HorizontalBoxes', obox='OrientedBoxes', rbox='rbox', qbox='qbox'), order
        assert sorted(box_type.box_converters) == [
            'hbox2obox', 'hbox2rbox', 'obox2hbox', 'rbox2hbox'], order
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_types_of_mmrotate_stay_its_own_in_either_order():
    """mmrotate cannot be installed beside mmdet 3.3; this registers what it registers."""
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', MMROTATE], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_parts_of_a_box():
    boxes = OrientedBoxes([[1, 2, 3, 4, 0.5]], dtype=torch.float32)
    assert boxes.centers.tolist() == [[1, 2]] and boxes.angles.tolist() == [0.5]
    assert (boxes.widths.item(), boxes.heights.item(), boxes.areas.item()) == (3, 4, 12)
    assert boxes.corners.shape == (1, 4, 2)
    assert OrientedBoxes([]).tensor.shape == (0, 5)
    with pytest.raises(AssertionError, match='5'):
        OrientedBoxes([[1, 2, 3, 4]])


def test_converters():
    boxes = HorizontalBoxes([[1, 2, 5, 10]], dtype=torch.float32)
    oriented = boxes.convert_to('obox')
    assert oriented.tensor.tolist() == [[3, 6, 4, 8, 0]]
    assert oriented.convert_to('hbox').tensor.tolist() == boxes.tensor.tolist()


@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
def test_flipping_moves_the_corners_and_twice_is_nothing(direction):
    before = random_boxes(20)
    boxes = OrientedBoxes(before)
    boxes.flip_((90, 120), direction)
    corners = oriented_corners(before)
    if direction != 'vertical':
        corners[..., 0] = 120 - corners[..., 0]
    if direction != 'horizontal':
        corners[..., 1] = 90 - corners[..., 1]
    assert (torch.cdist(boxes.corners, corners).amin(-1) < 1e-3).all()
    boxes.flip_((90, 120), direction)
    torch.testing.assert_close(boxes.tensor, before)


def test_four_quarter_turns_are_nothing_and_iou_stays():
    before, other = random_boxes(20), random_boxes(20)
    boxes, others = OrientedBoxes(before), OrientedBoxes(other)
    iou = OrientedBoxes.overlaps(boxes, others, is_aligned=True)
    for turn in range(4):
        boxes.rotate_((60, 45), 90)
        others.rotate_((60, 45), 90)
        same = OrientedBoxes.overlaps(boxes, others, is_aligned=True)
        torch.testing.assert_close(same, iou, rtol=0, atol=1e-4)
        assert turn == 3 or not same_corners(boxes.tensor, before)
    assert same_corners(boxes.tensor, before)


def test_rotating_moves_the_corners_clockwise():
    boxes = OrientedBoxes([[70, 45, 6, 2, 0.0]], dtype=torch.float32)
    boxes.rotate_((60, 45), 90)  # from right of the centre to below it
    torch.testing.assert_close(boxes.tensor, torch.tensor([[60, 55, 6, 2, math.pi / 2]]))


def test_projecting_like_rescaling_and_translating():
    before = random_boxes(20)
    scaled, projected = OrientedBoxes(before), OrientedBoxes(before)
    scaled.rescale_((2, 2))
    scaled.translate_((5, -3))
    projected.project_(np.array([[2, 0, 5], [0, 2, -3], [0, 0, 1]]))
    assert same_corners(scaled.tensor, projected.tensor, atol=1e-2)
    projected = OrientedBoxes(before)
    projected.project_(torch.tensor([[1.0, 0.5, 0], [0, 1, 0], [0, 0, 1]]))  # a shear
    corners = oriented_corners(before) @ torch.tensor([[1.0, 0], [0.5, 1]])
    for points, box in zip(corners.numpy(), projected.corners.numpy()):
        assert all(cv2.pointPolygonTest(box, p, True) > -0.05 for p in points.tolist())


def test_resizing_keeps_centres_and_angles_and_clipping_does_nothing():
    before = torch.tensor([[30.0, 40.0, 10.0, 4.0, 0.3], [-5, 300, 9, 9, 0]])
    boxes = OrientedBoxes(before)
    boxes.clip_((90, 120))
    assert torch.equal(boxes.tensor, before)
    boxes.resize_((2, 0.5))
    assert torch.equal(boxes.tensor, before * torch.tensor([1, 1, 2, 0.5, 1]))


def test_which_boxes_are_inside_an_image():
    boxes = OrientedBoxes(torch.tensor([[5.0, 5, 99, 99, 0], [-1, 5, 1, 1, 0], [5, 91, 1, 1, 0]]))
    assert boxes.is_inside((90, 120)).tolist() == [True, False, False]
    assert boxes.is_inside((90, 120), allowed_border=1).tolist() == [True, True, True]


def test_points_inside_aligned_and_bad_input():
    boxes = OrientedBoxes(torch.tensor([[5.0, 5, 4, 2, math.pi / 2], [0, 0, 2, 2, 0]]))
    points = torch.tensor([[5.0, 6.9], [0, 1]])
    assert boxes.find_inside_points(points).tolist() == [[True, False], [False, False]]
    assert boxes.find_inside_points(points, is_aligned=True).tolist() == [True, False]
    with pytest.raises(ValueError, match='3 points'):
        boxes.find_inside_points(torch.zeros(3, 2), is_aligned=True)


def test_boxes_from_masks():
    masks = np.zeros((2, 40, 60), np.uint8)
    masks[0, 10:20, 30:55] = 1  # x from 30, y from 10
    boxes = OrientedBoxes.from_instance_masks(BitmapMasks(masks, 40, 60)).tensor
    torch.testing.assert_close(boxes[0], torch.tensor([42.0, 14.5, 24, 9, 0]), atol=1e-3, rtol=0)
    assert boxes[1, :4].tolist() == [0, 0, 0, 0]
    expected = random_boxes(5)
    polygons = [[q.numpy()] for q in boxes_to_quads(expected)]
    found = OrientedBoxes.from_instance_masks(PolygonMasks(polygons, 100, 100))
    assert same_corners(found.tensor, expected, atol=1e-2)
    assert len(OrientedBoxes.from_instance_masks(PolygonMasks([], 100, 100))) == 0
    with pytest.raises(TypeError, match='BitmapMasks'):
        OrientedBoxes.from_instance_masks(type('Masks', (), dict(masks=[1])))


# Quadrilaterals


@pytest.mark.parametrize('pattern', ['le90', 'le135', 'oc'])
def test_quads_of_boxes_give_the_boxes_back(pattern):
    boxes = OrientedBoxes(random_boxes(50)).regularize(pattern).tensor
    found = quads_to_boxes(boxes_to_quads(boxes), pattern)
    assert found.shape == boxes.shape and same_corners(found, boxes, atol=1e-2)
    assert quads_to_boxes([]).numel() == 0


def test_quads_in_any_order_and_without_area():
    quad = [[0, 0], [8, 0], [8, 4], [0, 4]]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1]):
        box = quads_to_boxes([sum((quad[i] for i in order), [])])
        torch.testing.assert_close(box, torch.tensor([[4.0, 2, 8, 4, 0]]))
    line = quads_to_boxes([[0, 0, 8, 0, 8, 0, 0, 0]])
    torch.testing.assert_close(line, torch.tensor([[4.0, 0, 8, 0, 0]]))


# Overlaps


@pytest.mark.parametrize('mode', ['iou', 'iof'])
@pytest.mark.parametrize('spread', [50, 2000])
def test_overlaps_are_those_of_mmcv(mode, spread):
    a, b = random_boxes(300, spread), random_boxes(40, spread)
    expected = box_iou_rotated(a, b, mode=mode)
    assert expected.count_nonzero() > 5
    torch.testing.assert_close(oriented_overlaps(a, b, mode), expected, rtol=0, atol=1e-5)
    aligned = oriented_overlaps(OrientedBoxes(a[:40]), b, mode, is_aligned=True)
    torch.testing.assert_close(aligned, expected[:40].diagonal(), rtol=0, atol=1e-5)


def test_copies_overlap_entirely_and_are_suppressed():
    boxes = random_boxes(500, 200)
    copies = boxes + 1e3 - 1e3  # rounded
    assert oriented_overlaps(boxes, copies, is_aligned=True).min() > 0.99
    apart = boxes.clone()
    apart[:, :2] = torch.arange(500)[:, None] * 100.0
    twice = torch.cat([apart, apart * (1 + 1e-7)])
    kept = oriented_nms(twice, torch.linspace(1, 0, 1000), 0.1)
    assert kept.tolist() == list(range(500))


@pytest.mark.parametrize('iou_thr', [0.1, 0.5])
def test_nms_in_a_loop(iou_thr):
    boxes, scores = random_boxes(60, 120), torch.rand(60)
    kept = []
    for i in scores.argsort(descending=True).tolist():
        if all(box_iou_rotated(boxes[[i]], boxes[[j]]) <= iou_thr for j in kept):
            kept.append(i)
    assert oriented_nms(boxes, scores, iou_thr).tolist() == kept and 5 < len(kept) < 60
    assert oriented_nms(boxes[:0], scores[:0], iou_thr).tolist() == []


def test_overlaps_of_none_and_of_broken_boxes():
    assert oriented_overlaps(random_boxes(3), torch.zeros(0, 5)).shape == (3, 0)
    assert oriented_overlaps(torch.zeros(0, 5), torch.zeros(0, 5), is_aligned=True).shape == (0,)
    broken = torch.tensor([[1e9, 0, 0, 0, 0], [float('inf'), 0, 5, 5, 0], [0, 0, 1e12, 5, 0]])
    assert oriented_overlaps(broken, random_boxes(3)).isfinite().all()
    with pytest.raises(ValueError, match='2 boxes cannot be aligned with 3'):
        oriented_overlaps(random_boxes(2), random_boxes(3), is_aligned=True)
    with pytest.raises(ValueError, match="'giou'"):
        oriented_overlaps(random_boxes(2), random_boxes(3), mode='giou')


def test_overlaps_of_horizontal_boxes():
    boxes = HorizontalBoxes([[0, 0, 4, 4], [2, 0, 6, 4]], dtype=torch.float32)
    found = OrientedBoxes.overlaps(boxes, boxes)
    torch.testing.assert_close(found, torch.tensor([[1, 1 / 3], [1 / 3, 1]]))


def test_nothing_is_printed_when_boxes_are_clipped(caplog):
    with caplog.at_level(logging.DEBUG):
        OrientedBoxes(random_boxes(3)).clip_((10, 10))
    assert not caplog.records
