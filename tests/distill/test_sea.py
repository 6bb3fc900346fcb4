"""SEA: pixel labels, both losses against slow loops and by hand, and the hook on stock detectors."""

import copy
import math
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from operators import Operators
from tiny_detectors import (  # noqa: F401  the fixture
    SOURCES,
    TWO_STAGE,
    build_detector,
    distilled,
    drawn_batch,
    plain_config_dumps,
    start_hook,
    tiny_detector,
    tiny_run,
    tiny_teacher,
)
from training import assert_equal_weights, losses_of, train, weights

from mmextra.distill import sea
from mmextra.distill.sea import SEADistillHook, SemanticAlignLoss, pixel_labels
from mmextra.engine.checkpoint import read_checkpoint

TEACHER = dict(config=dict(model=dict(type='mmdet.RetinaNet')))
TINY = dict(SemanticAlignLoss=dict(), SEADistillHook=dict(teacher=TEACHER))


# Pixel labels.


def labels_of(boxes, labels, size, stride, img_shape=(1000, 1000), **options):
    """The label map of one image on one level."""
    boxes = torch.tensor(boxes, dtype=torch.float).view(-1, 4)
    maps = pixel_labels(
        [boxes], [torch.tensor(labels, dtype=torch.long)], [size], [stride], [img_shape], **options
    )
    assert len(maps) == 1 and maps[0].dtype == torch.int64
    return maps[0][0]


def test_the_smallest_box_wins():
    got = labels_of([[0, 0, 40, 40], [8, 8, 24, 24], [0, 0, 32, 32]], [0, 1, 2], (5, 5), 8)
    expected = [[2] * 4 + [0]] * 4 + [[0] * 5]
    expected = torch.tensor(expected)
    expected[1:3, 1:3] = 1
    assert torch.equal(got, expected)


def test_inside_is_strict():
    """The pixel centres are at 4, 12, 20, 28; a box that ends on one does not hold it."""
    got = labels_of([[4, 0, 20, 32]], [3], (4, 4), 8)
    assert torch.equal(got, torch.tensor([[-1, 3, -1, -1]] * 4))


def test_a_small_object_claims_one_pixel():
    sizes, strides = [(32, 32), (16, 16), (8, 8), (4, 4)], [8, 16, 32, 64]
    box = torch.tensor([[97.0, 33.0, 101.0, 37.0]])  # 4x4 pixels
    maps = pixel_labels([box], [torch.tensor([2])], sizes, strides, [(256, 256)])
    assert [int((m == 2).sum()) for m in maps] == [1, 1, 1, 1]
    for level, stride in zip(maps, strides):
        assert level[0, 35 // stride, 99 // stride] == 2
        assert (level == -1).sum() == level.numel() - 1


def test_claims_yield_to_objects_and_to_smaller_claims():
    # Two small boxes in cell (0, 0), one in a cell that a large object holds.
    boxes = [[10, 10, 16, 16], [20, 10, 24, 14], [66, 2, 70, 6], [64, 0, 128, 64]]
    got = labels_of(boxes, [0, 1, 2, 3], (2, 2), 64)
    assert got.tolist() == [[1, 3], [-1, -1]]


def test_padding_and_ignored_boxes_belong_to_nothing():
    ignored = torch.tensor([[8.0, 8.0, 24.0, 24.0]])
    got = labels_of([[0, 0, 64, 64]], [1], (4, 4), 8, (28, 20), ignored_bboxes=[ignored])
    expected = torch.full((4, 4), 1)
    expected[1:3, 1:3] = -2
    expected[:, 3] = expected[:, 2] = -2  # centres 20 and 28 lie outside a width of 20
    expected[3] = -2  # and 28 outside a height of 28
    assert torch.equal(got, expected)
    # A small object in an ignored box, or in the padding, claims nothing.
    inside = labels_of([[13, 13, 15, 15]], [1], (4, 4), 8, ignored_bboxes=[ignored])
    assert not (inside == 1).any()
    outside = labels_of([[30, 30, 31, 31]], [1], (4, 4), 8, (20, 20))
    assert not (outside == 1).any()


def test_no_objects():
    assert torch.equal(labels_of([], [], (2, 3), 8), torch.full((2, 3), -1))


def test_levels_by_size():
    """A box of side 224 belongs to the level of stride 16, one of half the side to that of 8."""
    side = [224.0, 223.0, 448.0, 10.0, 5000.0]
    boxes = torch.tensor([[0.0, 0.0, s, s] for s in side])
    labels = torch.arange(5)
    for strides, expected in (
        ([4, 8, 16, 32], [2, 1, 3, 0, 3]),
        ([8, 16, 32, 64, 128], [1, 0, 2, 0, 4]),
    ):
        sizes = [(math.ceil(6000 / s),) * 2 for s in strides]
        for k in range(5):
            maps = pixel_labels(
                [boxes[k : k + 1]],
                [labels[k : k + 1]],
                sizes,
                strides,
                [(6000, 6000)],
                level_rule='size',
            )
            assert [i for i, m in enumerate(maps) if (m == k).any()] == [expected[k]]
            assert all((m == -1).any() for m in maps)


def slow_labels(boxes, labels, size, stride, img_shape, ignored, masks=None):
    """:func:`pixel_labels` of one image and level, pixel by pixel."""
    result = torch.full(size, -1)
    areas = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).tolist()
    smallest_first = sorted(range(len(boxes)), key=lambda g: areas[g])
    seen = set()
    owned = set()
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = (i + 0.5) * stride, (j + 0.5) * stride
            for g in reversed(smallest_first):
                x1, y1, x2, y2 = boxes[g].tolist()
                inside = x1 < x < x2 and y1 < y < y2
                if masks is not None:
                    inside = (
                        y < masks.shape[1] and x < masks.shape[2] and bool(masks[g, int(y), int(x)])
                    )
                if inside:
                    seen.add(g)
                    owned.add((i, j))
                    result[i, j] = labels[g]
    for g in reversed(smallest_first):
        x1, y1, x2, y2 = boxes[g].tolist()
        cell = (
            min(int((y1 + y2) / 2 / stride), size[0] - 1),
            min(int((x1 + x2) / 2 / stride), size[1] - 1),
        )
        if g not in seen and cell not in owned:
            result[cell] = labels[g]
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = (i + 0.5) * stride, (j + 0.5) * stride
            hidden = any(b[0] < x < b[2] and b[1] < y < b[3] for b in ignored.tolist())
            if y >= img_shape[0] or x >= img_shape[1] or hidden:
                result[i, j] = -2
    return result


@pytest.mark.parametrize('with_masks', [False, True])
def test_pixel_labels_equal_slow_loops(with_masks):
    generator = torch.Generator().manual_seed(0)
    sizes, strides, shapes = (
        [(12, 16), (6, 8), (3, 4), (2, 2)],
        [8, 16, 32, 64],
        [(96, 128), (90, 100)],
    )

    def draw(count):
        corner = torch.rand(count, 2, generator=generator) * 90
        return torch.cat([corner, corner + 40 * torch.rand(count, 2, generator=generator) ** 2], 1)

    boxes, ignored = [draw(12), draw(7)], [draw(2), draw(0)]
    labels = [torch.randint(0, 5, (len(b),), generator=generator) for b in boxes]
    masks = None
    if with_masks:
        masks = [torch.rand(len(b), *s, generator=generator) > 0.97 for b, s in zip(boxes, shapes)]
    got = pixel_labels(boxes, labels, sizes, strides, shapes, ignored, masks)
    for level, size, stride in zip(got, sizes, strides):
        for i in range(2):
            mask = masks[i] if with_masks else None
            expected = slow_labels(boxes[i], labels[i], size, stride, shapes[i], ignored[i], mask)
            assert torch.equal(level[i], expected), (i, stride)


@pytest.mark.parametrize('level_rule', ['all', 'size'])
def test_labels_take_no_loop_over_objects_or_pixels(level_rule):
    """As many operators for more of both, and elements in proportion."""

    def work(objects, side):
        corner = torch.rand(objects, 2, generator=torch.Generator().manual_seed(0)) * 90
        boxes, labels = torch.cat([corner, corner + 30], 1), torch.arange(objects)
        sizes, strides = [(side, side), (side // 2, side // 2)], [128 // side, 256 // side]
        with Operators() as done:
            pixel_labels([boxes], [labels], sizes, strides, [(128, 128)], level_rule=level_rule)
        return done

    few, many = work(10, 16), work(160, 16)
    assert few.calls == many.calls > 20
    assert many.elements <= 16 * few.elements
    assert work(10, 64).calls == few.calls


# The losses.


def level(values, size):
    """Features (1, D, 1, size) of one level from one row a pixel."""
    return torch.tensor(values, dtype=torch.float).T.reshape(1, -1, 1, size)


def test_hand_case():
    student = level([(1, 0), (0, 1), (1, 1)], 3)
    teacher = level([(1, 0), (1, 1), (1, 1)], 3)
    labels = torch.tensor([[[0, 1, -1]]])
    got = SemanticAlignLoss(1.0, 1.0)([student], [teacher], [labels])
    assert got['loss_sea_anchor'].item() == pytest.approx(0.25)
    assert got['loss_sea_topo'].item() == pytest.approx(0.180964, abs=1e-6)


def pyramids(dtype=torch.float32, seed=0, width=6):
    """Two pyramids of two levels and labels: 3 categories, of which one is absent from level 2."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(2, width, 5, 7), (2, width, 3, 4)]
    student, teacher = (
        [torch.randn(s, generator=generator, dtype=dtype) for s in sizes] for _ in range(2)
    )
    labels = [torch.randint(-2, n, (2, *s[2:]), generator=generator) for n, s in zip((3, 2), sizes)]
    return student, teacher, labels


def slow_losses(student, teacher, labels):
    """The three terms, unweighted, one pixel and one category at a time."""
    sums, counted = [0.0, 0.0, 0.0], 0
    for s, t, names in zip(student, teacher, labels):
        pixels = [
            (names[b, i, j].item(), s[b, :, i, j], t[b, :, i, j])
            for b in range(names.shape[0])
            for i in range(names.shape[1])
            for j in range(names.shape[2])
        ]
        categories = sorted({k for k, _, _ in pixels if k >= 0})
        if not categories:
            continue
        counted += 1
        anchors = [
            [torch.stack([p[side] for p in pixels if p[0] == k]).mean(0) for k in categories]
            for side in (1, 2)
        ]
        sums[0] += sum(((a - b) ** 2).mean() for a, b in zip(*anchors)) / len(categories)
        groups = [[p for p in pixels if p[0] == k] for k in (*categories, -1)]
        groups = [g for g in groups if g]
        for group in groups:
            for _, own, other in group:
                share = 1 / len(groups) / len(group)
                for a, b in zip(*anchors):
                    d_own = 1 - F.cosine_similarity(own, a, dim=0, eps=1e-6)
                    d_other = 1 - F.cosine_similarity(other, b, dim=0, eps=1e-6)
                    sums[1] += share * (d_own - d_other) ** 2 / len(categories)
                sums[2] += share * ((own - other) ** 2).mean()
    return {f'loss_sea_{n}': v / counted for n, v in zip(('anchor', 'topo', 'pixel'), sums)}


def test_losses_equal_slow_loops():
    student, teacher, labels = pyramids(torch.float64)
    # A third level without objects does not count.
    for maps in (student, teacher):
        maps.append(torch.randn(2, 6, 1, 2, dtype=torch.float64))
    labels.append(torch.full((2, 1, 2), -1))
    assert [len(m[m >= 0].unique()) for m in labels] == [3, 2, 0]
    got = SemanticAlignLoss(1.0, 1.0, 1.0)(student, teacher, labels)
    for name, value in slow_losses(student, teacher, labels).items():
        torch.testing.assert_close(got[name], value)
    weighted = SemanticAlignLoss(3.0, 2.0, 0.5)(student, teacher, labels)
    for name, weight in (('anchor', 3.0), ('topo', 2.0), ('pixel', 0.5)):
        torch.testing.assert_close(weighted[f'loss_sea_{name}'], weight * got[f'loss_sea_{name}'])


def test_gradients():
    student, teacher, labels = pyramids(torch.float64)
    leaves = [s[:, :2, :2, :3].clone().requires_grad_() for s in student]
    others = [t[:, :2, :2, :3] for t in teacher]
    labels = [m[:, :2, :3] for m in labels]
    loss = SemanticAlignLoss(2.0, 5.0, 1.0)
    assert torch.autograd.gradcheck(
        lambda *maps: sum(loss(maps, others, labels).values()), tuple(leaves)
    )


def test_the_loss_does_not_see_autocast():
    plain = SemanticAlignLoss(pixel_weight=1.0)(*pyramids())
    with torch.autocast('cpu', torch.bfloat16):
        under = SemanticAlignLoss(pixel_weight=1.0)(*pyramids())
    assert plain == under


def test_equal_networks_have_no_loss():
    student, _, labels = pyramids()
    leaves = [s.requires_grad_() for s in student]
    got = SemanticAlignLoss(pixel_weight=1.0)(leaves, [s.detach() for s in leaves], labels)
    sum(got.values()).backward()
    assert all(v == 0 for v in got.values()) and len(got) == 3
    assert all(leaf.grad.abs().max() < 1e-6 for leaf in leaves)


def test_topology_does_not_see_scale_or_rotation():
    student, teacher, labels = pyramids(torch.float64)
    loss = SemanticAlignLoss()
    plain = loss(student, teacher, labels)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    for changed in (
        [3.7 * s for s in student],
        [torch.einsum('cd,bdhw->bchw', rotation, s) for s in student],
    ):
        got = loss(changed, teacher, labels)
        torch.testing.assert_close(got['loss_sea_topo'], plain['loss_sea_topo'])
        assert abs(got['loss_sea_anchor'] - plain['loss_sea_anchor']) > 1e-2


def test_anchors_do_not_see_the_order_of_pixels_and_topology_does():
    student, teacher, labels = pyramids(torch.float64)
    loss = SemanticAlignLoss()
    plain = loss(student, teacher, labels)
    shuffled = student[0].permute(1, 0, 2, 3).flatten(1).clone()
    members = (labels[0].flatten() == 1).nonzero()[:, 0]
    assert len(members) > 3
    shuffled[:, members] = shuffled[:, members.roll(1)]
    shuffled = shuffled.view(6, 2, 5, 7).permute(1, 0, 2, 3)
    got = loss([shuffled, student[1]], teacher, labels)
    torch.testing.assert_close(got['loss_sea_anchor'], plain['loss_sea_anchor'])
    assert abs(got['loss_sea_topo'] - plain['loss_sea_topo']) > 1e-3


def test_numbers_of_pixels_do_not_matter():
    """More background alike, or larger objects alike: what a plain squared error counts, SEA does not."""
    student, teacher, labels = (x[0] for x in pyramids(torch.float64))
    loss = SemanticAlignLoss()
    rows = [m.permute(0, 2, 3, 1).reshape(-1, 6) for m in (student, teacher)]
    labels = labels.flatten()

    def losses_of_pixels(index):
        maps = [r[index].T.reshape(1, 6, 1, -1) for r in rows]
        got = loss([maps[0]], [maps[1]], [labels[index].view(1, 1, -1)])
        return got, (maps[0] - maps[1]).square().mean()

    every = torch.arange(len(labels))
    plain, mse = losses_of_pixels(every)
    background = every[labels == -1]
    got, changed = losses_of_pixels(torch.cat([every, background, background, background]))
    for name in plain:
        torch.testing.assert_close(got[name], plain[name])
    assert abs(changed - mse) > 1e-3
    larger, changed = losses_of_pixels(torch.cat([every, every[labels == 2]]))
    torch.testing.assert_close(larger['loss_sea_anchor'], plain['loss_sea_anchor'])
    torch.testing.assert_close(larger['loss_sea_topo'], plain['loss_sea_topo'])
    assert abs(changed - mse) > 1e-3


def test_padding_does_not_matter():
    student, teacher, labels = pyramids()
    loss = SemanticAlignLoss(pixel_weight=1.0)
    plain = loss(student, teacher, labels)
    changed = [s + 9 * (m == -2).unsqueeze(1) for s, m in zip(student, labels)]
    got = loss(changed, teacher, labels)
    assert any((m == -2).any() for m in labels)
    assert all(torch.equal(got[k], plain[k]) for k in plain)


def test_without_objects_every_parameter_has_a_gradient():
    student, teacher, labels = pyramids()
    leaves = [s.requires_grad_() for s in student]
    got = SemanticAlignLoss(pixel_weight=1.0)(leaves, teacher, [m.clamp(max=-1) for m in labels])
    assert all(v == 0 for v in got.values()) and len(got) == 3
    sum(got.values()).backward()
    assert all(torch.equal(leaf.grad, torch.zeros_like(leaf)) for leaf in leaves)


def test_zero_features_are_no_nan():
    student, teacher, labels = pyramids()
    zeros = [torch.zeros_like(s).requires_grad_() for s in student]
    got = SemanticAlignLoss()(zeros, teacher, labels)
    sum(got.values()).backward()
    assert all(v.isfinite() for v in got.values())
    assert all(z.grad.isfinite().all() for z in zeros)


def test_detached_anchors():
    """The pixel alone learns; the value is the same."""
    student, teacher, labels = pyramids(torch.float64)
    grads, values = [], []
    for detach in (False, True):
        leaf = student[0].clone().requires_grad_()
        loss = SemanticAlignLoss(None, 1.0, detach_anchor=detach)
        value = loss([leaf], teacher[:1], labels[:1])['loss_sea_topo']
        value.backward()
        grads.append(leaf.grad)
        values.append(value)
    assert torch.equal(*values) and (grads[0] - grads[1]).abs().max() > 1e-4
    leaf = student[0].clone().requires_grad_()
    pixels, names = leaf.permute(0, 2, 3, 1)[labels[0] != -2], labels[0][labels[0] != -2]
    others = teacher[0].permute(0, 2, 3, 1)[labels[0] != -2]
    total = 0.0
    for k in range(3):
        anchors = pixels[names == k].mean(0).detach(), others[names == k].mean(0)
        error = F.cosine_similarity(pixels, anchors[0][None]) - F.cosine_similarity(
            others, anchors[1][None]
        )
        total = total + sum(error[names == g].square().mean() for g in (-1, 0, 1, 2)) / 4 / 3
    total.backward()
    torch.testing.assert_close(grads[1], leaf.grad)


class Together:
    """``all_reduce`` between threads."""

    def __init__(self, count):
        self.barrier, self.shared = threading.Barrier(count, timeout=20), []

    def __call__(self, tensor, op='sum'):
        self.shared.append(tensor.clone())
        self.barrier.wait()
        stacked = torch.stack(self.shared)
        result = stacked.sum(0) if op == 'sum' else stacked.amax(0)
        if self.barrier.wait() == 0:
            self.shared.clear()
        self.barrier.wait()
        tensor.copy_(result)


def test_synchronised_anchors(monkeypatch):
    """Each of two processes compares with the anchors of the whole batch; gradients stay local."""
    student, teacher, labels = pyramids(torch.float64)
    labels[0][1][labels[0][1] == 0] = 1  # a category that the second process has not
    labels[1][0] = -1  # no object at all on level 2 of the first
    whole = SemanticAlignLoss(1.0, None)(student, teacher, labels)['loss_sea_anchor']
    monkeypatch.setattr(sea, 'all_reduce', Together(2))
    leaves, results = [s.clone().requires_grad_() for s in student], [None, None]

    def process(rank):
        part = slice(rank, rank + 1)
        loss = SemanticAlignLoss(1.0, 1.0, sync_anchor=True)
        results[rank] = loss(
            [s[part] for s in leaves], [t[part] for t in teacher], [m[part] for m in labels]
        )

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got in results:
        torch.testing.assert_close(got['loss_sea_anchor'], whole)
        assert got['loss_sea_topo'] > 0
    results[0]['loss_sea_anchor'].backward()
    assert leaves[0].grad[0].abs().max() > 0 and leaves[0].grad[1].abs().max() == 0


def test_a_process_without_any_pixel_of_a_group():
    """With synchronised anchors its categories are those of other processes, and all of it may be padding."""
    assert not sea.group_shares(torch.zeros(1, 2, 6), torch.zeros(1, 6, dtype=torch.bool)).any()


def test_one_process_needs_no_synchronisation():
    student, teacher, labels = pyramids()
    plain = SemanticAlignLoss()(student, teacher, labels)
    synced = SemanticAlignLoss(sync_anchor=True)(student, teacher, labels)
    for name in plain:
        torch.testing.assert_close(plain[name], synced[name])


def test_losses_take_no_loop_over_pixels_or_categories():
    def work(side, categories):
        generator = torch.Generator().manual_seed(0)
        own, other = torch.randn(2, 2, 6, side, side, generator=generator)
        labels = torch.arange(2 * side * side).view(2, side, side) % (categories + 1) - 1
        with Operators() as done:
            losses = SemanticAlignLoss(pixel_weight=1.0)([own.requires_grad_()], [other], [labels])
            sum(losses.values()).backward()
        return done

    few = work(8, 3)
    for more in (work(32, 3), work(8, 48)):
        assert more.calls == few.calls > 50
        assert more.elements <= 16 * few.elements


def test_bad_arguments():
    student, teacher, labels = pyramids()
    loss = SemanticAlignLoss()
    with pytest.raises(
        ValueError, match='same number of feature levels: the student has 2, the teacher 1'
    ):
        loss(student, teacher[:1], labels)
    with pytest.raises(ValueError, match='same width'):
        loss(student, [t[:, :3] for t in teacher], labels)
    with pytest.raises(ValueError, match='same strides'):
        loss(student, [t[:, :, 1:] for t in teacher], labels)
    with pytest.raises(ValueError, match=r'label maps must be \(B, H, W\) like the features'):
        loss(student, teacher, [m[:, 1:] for m in labels])
    with pytest.raises(ValueError, match="level_rule must be one of .*got 'some'"):
        labels_of([], [], (2, 2), 8, level_rule='some')
    with pytest.raises(ValueError, match="level_rule must be one of .*got 'some'"):
        SEADistillHook(TEACHER, level_rule='some')
    with pytest.raises(ValueError, match="region must be one of .*got 'polygon'"):
        SEADistillHook(TEACHER, region='polygon')


# The hook on detectors, without a runner.


@pytest.mark.parametrize('name', ['retinanet', 'faster_rcnn'])
def test_hook_equals_slow_loops(name):
    hook = SEADistillHook(tiny_teacher(name), pixel_weight=1.0)
    model = start_hook(hook, tiny_detector(name))
    inputs, samples = drawn_batch()
    samples[1].set_metainfo(dict(img_shape=(80, 100)))
    samples[0].ignored_instances.bboxes = torch.tensor([[0.0, 0.0, 30.0, 30.0]])
    _, got, records = distilled(hook, model, inputs, samples)
    levels = 4 if name == 'faster_rcnn' else 5
    strides = [4, 8, 16, 32] if name == 'faster_rcnn' else [8, 16, 32, 64, 128]
    own = records['neck'][:levels]
    with torch.no_grad():
        other = hook.teacher.model.extract_feat(inputs)[:levels]
    labels = [
        torch.stack(
            [
                slow_labels(
                    s.gt_instances.bboxes,
                    s.gt_instances.labels,
                    tuple(maps.shape[2:]),
                    stride,
                    s.img_shape,
                    s.ignored_instances.bboxes,
                )
                for s in samples
            ]
        )
        for maps, stride in zip(own, strides)
    ]
    expected = slow_losses(own, other, labels)
    for term, weight in (('anchor', 2.0), ('topo', 5.0), ('pixel', 1.0)):
        key = f'loss_sea_{term}'
        torch.testing.assert_close(got[key], weight * expected[key], rtol=1e-4, atol=1e-6)
    assert len(got) == 3


def test_adapters_where_widths_differ():
    hook = SEADistillHook(tiny_teacher('retinanet', channels=64))
    model = start_hook(hook, tiny_detector('retinanet'))
    assert [tuple(a.weight.shape) for a in hook.adapters] == [(64, 32, 1, 1)] * 5
    assert all(a.bias.abs().max() == 0 and a.weight.std() > 0 for a in hook.adapters)
    _, losses, _ = distilled(hook, model, *drawn_batch())
    sum(losses.values()).backward()
    assert all(p.grad.abs().max() > 0 for p in hook.adapters.parameters())
    assert model.neck.fpn_convs[0].conv.weight.grad.abs().max() > 0
    # Equal widths: none, unless asked for.
    hook = SEADistillHook(tiny_teacher('retinanet'))
    start_hook(hook, model)
    assert hook.adapters is None
    hook = SEADistillHook(tiny_teacher('retinanet'), adapter=True)
    start_hook(hook, model)
    assert len(hook.adapters) == 5


@pytest.mark.parametrize('name', ['retinanet', 'faster_rcnn'])
def test_classes_absent_from_the_batch_and_an_image_without_objects_beside_one_with(name):
    hook = SEADistillHook(tiny_teacher(name))
    model = start_hook(hook, tiny_detector(name))
    inputs, samples = drawn_batch()
    samples[0].gt_instances.labels.fill_(4)
    samples[1].gt_instances = samples[1].gt_instances[:0]
    _, losses, records = distilled(hook, model, inputs, samples)
    maps = hook._chosen(records['neck'], 'student')
    labels = hook.label_maps(maps, [8], samples)
    assert all(set(m[0].unique().tolist()) <= {-2, -1, 4} and (m[1] < 0).all() for m in labels)
    assert all(v > 0 for v in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.neck.parameters())


def test_one_roi():
    """RoIs play no part in this method: the loss is the same for any number of them."""
    values = []
    for rois in (32, 1):
        hook = SEADistillHook(tiny_teacher('faster_rcnn'))
        model = start_hook(hook, tiny_detector('faster_rcnn', rois=rois))
        losses = distilled(hook, model, *drawn_batch(objects=1))[1]
        values.append(torch.stack(list(losses.values())))
    assert torch.equal(*values) and (values[0] > 0).all()


def test_a_teacher_of_another_normalisation_sees_its_own_pixels():
    """The same weights in both, and pixels that differ: the features are those of its own format."""
    own, other = (
        dict(type='DetDataPreprocessor', mean=[m] * 3, std=[s] * 3) for m, s in ((0, 1), (100, 50))
    )
    teacher, model = (dict(tiny_detector('retinanet'), data_preprocessor=p) for p in (other, own))
    hook = SEADistillHook(dict(config=dict(model=teacher, default_scope='mmdet')))
    student = start_hook(hook, model)
    images = 255 * torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    distilled(hook, student, images, drawn_batch()[1])
    with torch.no_grad():
        expected = hook.teacher.model.extract_feat((images - 100) / 50)
    for got, level_ in zip(hook.teacher.features, expected):
        torch.testing.assert_close(got, level_)


def test_without_objects_the_adapters_have_gradients():
    hook = SEADistillHook(tiny_teacher('retinanet', channels=64))
    model = start_hook(hook, tiny_detector('retinanet'))
    _, losses, _ = distilled(hook, model, *drawn_batch(objects=0))
    assert all(v == 0 for v in losses.values())
    sum(losses.values()).backward()
    for parameter in [*hook.adapters.parameters(), *model.neck.parameters()]:
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_other_layers_and_levels():
    layers = dict(student_layer='backbone', teacher_layer='backbone')
    hook = SEADistillHook(tiny_teacher('retinanet'), levels=(1, 3), **layers)
    model = start_hook(hook, tiny_detector('retinanet'))
    assert [tuple(a.weight.shape[:2]) for a in hook.adapters] == [(24, 16), (96, 64)]
    _, losses, _ = distilled(hook, model, *drawn_batch())
    assert all(v > 0 for v in losses.values())
    # One map alone, and no more than that.
    single = dict(student_layer='backbone.layer3', teacher_layer='backbone.layer3')
    hook = SEADistillHook(tiny_teacher('retinanet'), **single)
    start_hook(hook, model)
    assert hook.levels == (0,) and len(hook.adapters) == 1


def test_a_coarse_level_alone():
    """Its stride, 128, is more than 224 / 2 pixels: the sizes round up at every level."""
    hook = SEADistillHook(tiny_teacher('retinanet'), levels=(4,))
    model = start_hook(hook, tiny_detector('retinanet'))
    inputs, samples = drawn_batch(count=1, objects=1, size=(224, 224))
    samples[0].gt_instances.bboxes = torch.tensor([[40.0, 0.0, 180.0, 70.0]])
    samples[0].gt_instances.labels = torch.tensor([3])
    with torch.no_grad():
        output = model.extract_feat(inputs)
    assert output[4].shape[2:] == (2, 2)
    hook.teacher.see(inputs, samples, model.data_preprocessor)
    labels = hook.aligned(dict(neck=output), hook.teacher, inputs, samples)[2]
    # The centres of the pixels are at 64 and 192.
    assert labels[0].tolist() == [[[3, -1], [-1, -1]]]


def mask_samples(kind):
    """Two objects in one box each; the mask of the first is its upper half."""
    inputs, samples = drawn_batch(count=1, objects=2)
    instances = samples[0].gt_instances
    instances.bboxes = torch.tensor([[0.0, 0.0, 64.0, 64.0], [64.0, 0.0, 128.0, 96.0]])
    instances.labels = torch.tensor([1, 4])
    if kind == 'polygon':
        corners = [[0, 0, 64, 0, 64, 32, 0, 32], [64, 0, 128, 0, 128, 96, 64, 96]]
        instances.masks = PolygonMasks([[np.array(c, dtype=float)] for c in corners], 96, 128)
    else:
        bitmap = np.zeros((2, 96, 128), dtype=np.uint8)
        bitmap[0, :32, :64] = bitmap[1, :, 64:] = 1
        instances.masks = BitmapMasks(bitmap, 96, 128)
    return inputs, samples


@pytest.mark.parametrize('kind', ['bitmap', 'polygon'])
def test_masks_instead_of_boxes(kind):
    hook = SEADistillHook(tiny_teacher('mask_rcnn'), region='mask')
    inputs, samples = mask_samples(kind)
    maps = [torch.zeros(1, 1, 12, 16)]
    got = hook.label_maps(maps, [8], samples)[0][0]
    expected = torch.full((12, 16), -1)
    expected[:4, :8], expected[:, 8:] = 1, 4
    assert torch.equal(got, expected)
    hook.region = 'box'
    assert (hook.label_maps(maps, [8], samples)[0][0][:8, :8] == 1).all()


def test_losses_are_float32_under_autocast():
    hook = SEADistillHook(tiny_teacher('retinanet', channels=64))
    model = start_hook(hook, tiny_detector('retinanet'))
    with torch.autocast('cpu', torch.bfloat16):
        _, losses, records = distilled(hook, model, *drawn_batch())
    assert records['neck'][0].dtype == torch.bfloat16
    assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values())


def test_detectors_that_do_not_fit_are_refused():
    def refused(student, teacher, match, **options):
        config = dict(config=dict(model=teacher, default_scope='mmdet'))
        with pytest.raises(ValueError, match=match):
            start_hook(SEADistillHook(config, **options), student)

    retina = tiny_detector('retinanet')
    wide = tiny_detector('retinanet', channels=64)
    refused(retina, wide, 'same width.*`neck.out_channels`', adapter=False)
    short = copy.deepcopy(retina)
    short['neck'].update(num_outs=4)
    refused(retina, short, r'levels=\(0, 1, 2, 3, 4\), but the teacher has 4 feature maps')
    refused(retina, retina, 'but the student has 5 feature maps', levels=(0, 7))
    refused(retina, tiny_detector('faster_rcnn'), 'feature maps of the same strides')
    refused(retina, retina, "no submodule 'nekc'; near names: neck", student_layer='nekc')
    refused(retina, retina, r"teacher \(RetinaNet\) has no submodule 'fpn'", teacher_layer='fpn')
    hook = SEADistillHook(tiny_teacher('retinanet'), region='mask')
    model = start_hook(hook, retina)
    with pytest.raises(ValueError, match=r'LoadAnnotations\(with_mask=True\)'):
        distilled(hook, model, *drawn_batch())
    hook = SEADistillHook(dict(tiny_teacher('retinanet'), input_size=(64, 64)))
    model = start_hook(hook, retina)
    with pytest.raises(ValueError, match='no `input_size` of the teacher'):
        distilled(hook, model, *drawn_batch())


# The hook on the stock runner.


def sea_hook(name, channels=32, **options):
    teacher = tiny_teacher(name, channels=channels)
    return dict(type='mmextra.SEADistillHook', teacher=teacher, **options)


@pytest.mark.parametrize('name', SOURCES)
def test_two_iterations(name, shapes_root, tmp_path):
    options = dict(mask_rcnn=dict(region='mask'), atss=dict(level_rule='size')).get(name, {})
    hooks = [sea_hook(name, pixel_weight=1.0, **options)]
    if name == 'gfl':  # two methods, one teacher
        hooks.append(dict(type='mmextra.LocalizationDistillationHook', teacher=tiny_teacher(name)))
    runner = train(tiny_run(name, shapes_root, tmp_path, hooks))
    losses = losses_of(runner)
    expected = {'loss_sea_anchor', 'loss_sea_topo', 'loss_sea_pixel'}
    expected |= {'loss_ld'} if name == 'gfl' else set()
    assert expected <= set(losses)
    assert all(len(v) == 2 and all(0 <= x < 1e4 for x in v) for v in losses.values())
    assert all(min(losses[k]) > 0 for k in expected - {'loss_ld'})
    hook = next(h for h in runner.hooks if isinstance(h, SEADistillHook))
    assert hook.levels == tuple(range(4 if name in TWO_STAGE else 5))
    saved = read_checkpoint(str(tmp_path / 'epoch_1.pth'))['state_dict']
    build_detector(tiny_detector(name)).load_state_dict(saved, strict=True)


def test_zero_weights_are_the_plain_run(shapes_root, tmp_path):
    results = []
    for hooks in ([], [sea_hook('faster_rcnn', anchor_weight=0, topo_weight=None)]):
        runner = train(tiny_run('faster_rcnn', shapes_root, tmp_path / f'{len(hooks)}', hooks))
        results.append(weights(runner.model))
    assert_equal_weights(*results)


def test_resume_equals_an_unbroken_run(shapes_root, tmp_path):
    cfg = tiny_run('retinanet', shapes_root, tmp_path / 'a', [sea_hook('retinanet', channels=64)])
    cfg.train_cfg.max_epochs = 2
    unbroken = train(cfg)
    cfg.merge_from_dict(
        dict(work_dir=str(tmp_path / 'b'), resume=True, load_from=str(tmp_path / 'a/epoch_1.pth'))
    )
    resumed = train(cfg)
    assert_equal_weights(weights(unbroken.model), weights(resumed.model))
    adapters = [
        next(h for h in r.hooks if isinstance(h, SEADistillHook)).adapters
        for r in (unbroken, resumed)
    ]
    assert len(adapters[0]) == 5
    assert_equal_weights(*map(weights, adapters))
