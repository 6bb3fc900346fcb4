"""Dsig: the authors' graph losses, the numbers of the paper, and the hook on stock detectors."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.runner import Runner
from operators import Operators
from tiny_detectors import (  # noqa: F401  the fixture
    ONE_STAGE,
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
from torch import nn
from training import assert_equal_weights, losses_of, train, weights

from mmextra.distill.base import Teacher
from mmextra.distill.dsig import (
    DETECTIONS,
    InstanceGraphDistillHook,
    InstanceGraphLoss,
    background_entropy,
    class_box_l1,
    dense_extractor,
    edge_matrix,
    mean_kl,
)
from mmextra.distill.pyramid import blank_features, evaluating, pyramid_strides
from mmextra.engine.checkpoint import read_checkpoint
from mmextra.registry import HOOKS, MODELS

TEACHER = dict(config=dict(model=dict(type='mmdet.RetinaNet')))
TINY = dict(InstanceGraphLoss=dict(), InstanceGraphDistillHook=dict(teacher=TEACHER))
FEATURES = dict(feat=1.0, node_fg=None, node_bg=None, edge=None, roi_cls=None, roi_reg=None)


# The loss on tensors.


@pytest.mark.golden('dsig', 'dsig_graph')
def test_graph_is_the_authors(case):
    meta, x = case.meta, case.inputs
    w = meta['weights']
    graph = InstanceGraphLoss(
        node_fg=w['node_fg'],
        node_bg=dict(weight=w['node_bg'], alpha=meta['bg_alpha']),
        edge=w['edge'],
        mine_thr=meta['mine_threshold'],
    )
    images = range(len(meta['num_fg']))
    student = [[case.leaf(f's_{part}{i}') for i in images] for part in ('fg', 'bg')]
    teacher = [case.series('t_fg'), case.series('t_bg')]
    logits = x['t_bg_cls_logits'].split(meta['num_bg'])
    got = graph(student[0], teacher[0], student[1], teacher[1], logits)
    classes, leaves = meta['num_classes'], [case.leaf('s_cls'), case.leaf('s_reg')]
    got['loss_roi_cls'] = w['roi_cls'] * mean_kl(leaves[0], x['t_cls'], meta['temperature'])
    got['loss_roi_reg'] = w['roi_reg'] * class_box_l1(
        leaves[1], x['t_reg'], x['roi_labels'], classes
    )
    sum(got.values()).backward()
    got['t_bg_ce'] = background_entropy(x['t_bg_cls_logits'])
    for i in images:
        mined = got[f'mined_bg_idx{i}'] = graph.mined(logits[i], meta['num_fg'][i])
        for side, (fg, bg) in dict(s=student, t=teacher).items():
            got[f'edge_{side}{i}'] = edge_matrix(torch.cat([fg[i], bg[i][mined]]))
    case.check(got)


def batch(fg=(3, 5), bg=(6, 4), dtype=torch.float32, seed=0):
    """Random features of student and teacher and the teacher's background logits, 4 classes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(counts, *shape):
        return [torch.randn(n, *shape, generator=generator, dtype=dtype) for n in counts]

    return [draw(n, 4, 3, 3) for n in (fg, fg, bg, bg)] + [draw(bg, 5)]


def slow_graph(s_fg, t_fg, s_bg, t_bg, logits, alpha=7.5, thr=0.6):
    """The three terms, unweighted, one pair of nodes at a time."""
    node_fg = node_bg = edge = 0.0
    for i in range(len(s_fg)):
        node_fg += ((s_fg[i] - t_fg[i]) ** 2).mean()
        node_bg += alpha * len(s_fg[i]) / len(s_bg[i]) * ((s_bg[i] - t_bg[i]) ** 2).mean()
        nodes = list(zip(s_fg[i], t_fg[i]))
        for own, other, row in zip(s_bg[i], t_bg[i], logits[i]):
            if F.cross_entropy(row[None], torch.tensor([4])) >= thr:
                nodes.append((own, other))
        for s_a, t_a in nodes:
            for s_b, t_b in nodes:
                own = F.cosine_similarity(s_a.flatten(), s_b.flatten(), dim=0)
                other = F.cosine_similarity(t_a.flatten(), t_b.flatten(), dim=0)
                edge += 0.5 * (own - other) ** 2 / len(nodes) ** 2
    return dict(loss_node_fg=node_fg, loss_node_bg=node_bg, loss_edge=edge)


def test_graph_equals_slow_loops():
    inputs = batch(dtype=torch.float64)
    got = InstanceGraphLoss(1.0, dict(weight=1.0), 1.0)(*inputs)
    expected = slow_graph(*inputs)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value)


def test_gradients():
    s_fg, t_fg, s_bg, t_bg, logits = batch((2,), (2,), torch.float64)
    leaves = [t[:, :1, :2, :2].clone().requires_grad_() for t in (s_fg[0], s_bg[0])]
    others = [t[:, :1, :2, :2] for t in (t_fg[0], t_bg[0])]
    graph = InstanceGraphLoss(mine_thr=0.0)

    def total(fg, bg):
        return sum(graph([fg], others[:1], [bg], others[1:], logits).values())

    assert torch.autograd.gradcheck(total, leaves)


def test_the_loss_does_not_see_autocast():
    inputs = batch()
    plain = InstanceGraphLoss()(*inputs)
    with torch.autocast('cpu', torch.bfloat16):
        under = InstanceGraphLoss()(*inputs)
    assert plain == under


def test_equal_networks_have_no_loss():
    s_fg, _, s_bg, _, logits = batch()
    leaves = [t.requires_grad_() for t in (*s_fg, *s_bg)]
    got = InstanceGraphLoss()(s_fg, s_fg, s_bg, s_bg, logits)
    sum(got.values()).backward()
    assert all(v == 0 for v in got.values()) and len(got) == 3
    assert all(leaf.grad.abs().max() == 0 for leaf in leaves)
    rows = torch.randn(6, 8)
    assert mean_kl(rows, rows, 2.0) == 0 and class_box_l1(rows, rows, torch.arange(6) % 2, 2) == 0


def test_edges_do_not_see_scale_and_nodes_do():
    s_fg, t_fg, s_bg, t_bg, logits = batch()
    graph = InstanceGraphLoss()
    plain = graph(s_fg, t_fg, s_bg, t_bg, logits)
    scaled = graph([s_fg[0] * 3, s_fg[1]], t_fg, [s_bg[0] * 3, s_bg[1]], t_bg, logits)
    torch.testing.assert_close(scaled['loss_edge'], plain['loss_edge'])
    assert abs(scaled['loss_node_fg'] - plain['loss_node_fg']) > 1e-2


def test_order_of_nodes_does_not_matter():
    inputs = batch()
    orders = [[torch.randperm(n) for n in counts] for counts in ((3, 5), (6, 4))]
    at = [orders[0], orders[0], orders[1], orders[1], orders[1]]
    shuffled = [[t[o] for t, o in zip(tensors, order)] for tensors, order in zip(inputs, at)]
    plain, got = InstanceGraphLoss()(*inputs), InstanceGraphLoss()(*shuffled)
    for name in plain:
        torch.testing.assert_close(got[name], plain[name])


def test_small_images():
    """One node alone has no edge to differ in; an image without foreground is 0, not NaN."""
    s_fg, t_fg, s_bg, t_bg, logits = batch((1, 0, 0), (4, 4, 0))
    one = InstanceGraphLoss(mine_thr=100.0)(s_fg[:1], t_fg[:1], s_bg[:1], t_bg[:1], logits[:1])
    assert one['loss_edge'].abs() < 1e-12 and one['loss_node_fg'] > 0
    s_fg, s_bg = ([t.requires_grad_() for t in ts] for ts in (s_fg, s_bg))
    none = InstanceGraphLoss(mine_thr=0.0)(s_fg[1:], t_fg[1:], s_bg[1:], t_bg[1:], logits[1:])
    assert none['loss_node_fg'] == 0 and none['loss_node_bg'] == 0 and none['loss_edge'] > 0
    sum(none.values()).backward()
    assert all(t.grad.isfinite().all() for t in (*s_fg[1:], *s_bg[1:]))
    rows = torch.zeros(0, 8)
    assert mean_kl(rows, rows) == 0 and class_box_l1(rows, rows, torch.zeros(0).long(), 2) == 0


def test_adaptive_weight_of_the_background():
    """With as many background as foreground RoIs and alpha 1 both count alike."""
    s_fg, t_fg, _, _, _ = batch()
    graph = InstanceGraphLoss(0.5, dict(weight=0.5, alpha=1.0), None)
    got = graph(s_fg, t_fg, s_fg, t_fg)
    torch.testing.assert_close(got['loss_node_bg'], got['loss_node_fg'])
    # Four times the background of the same error: a quarter of the weight, the same term.
    more = graph(
        s_fg, t_fg, [t.repeat(4, 1, 1, 1) for t in s_fg], [t.repeat(4, 1, 1, 1) for t in t_fg]
    )
    torch.testing.assert_close(more['loss_node_bg'] * 4, got['loss_node_bg'])


def test_mining():
    _, _, _, _, (logits, _) = batch(bg=(20, 1))
    entropy = background_entropy(logits)
    assert InstanceGraphLoss(mine_thr=0.0).mined(logits, 3).tolist() == list(range(20))
    assert len(InstanceGraphLoss(mine_thr=1e9).mined(logits, 3)) == 0
    kept = InstanceGraphLoss().mined(logits, 3)
    # 0.6 is a background probability of at most 0.549.
    expected = (logits.softmax(1)[:, -1] <= 0.5488).nonzero()[:, 0]
    assert kept.tolist() == expected.tolist() and 0 < len(kept) < 20
    capped = InstanceGraphLoss(max_nodes=6).mined(logits, 3)
    assert capped.tolist() == sorted(entropy.topk(3).indices.tolist())
    assert len(InstanceGraphLoss(max_nodes=2).mined(logits, 3)) == 0
    assert len(InstanceGraphLoss(max_nodes=500).mined(logits, 3)) == len(kept)


def test_terms_can_be_left_out():
    inputs = batch()
    assert InstanceGraphLoss(None, None, None)(*inputs) == {}
    assert set(InstanceGraphLoss(0.0, dict(weight=0.0), 1.0)(*inputs)) == {'loss_edge'}
    foreground = InstanceGraphLoss()(*inputs[:2])
    assert set(foreground) == {'loss_node_fg', 'loss_edge'}
    unmined = InstanceGraphLoss(mine_thr=None)(*inputs)
    torch.testing.assert_close(unmined['loss_edge'], foreground['loss_edge'])
    assert 'loss_node_bg' in unmined


def test_logits_by_hand():
    own, other = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    q = other.div(2).softmax(1)[0]
    expected = 4 * sum(p * (p.log() - torch.tensor(0.5).log()) for p in q) / 2
    torch.testing.assert_close(mean_kl(own, other, 2.0), expected)
    # Three RoIs, of which one is foreground of class 1: its columns 4 to 7, over all three.
    own, other = torch.zeros(3, 8), torch.arange(24.0).view(3, 8)
    got = class_box_l1(own, other, torch.tensor([2, 1, 2]), 2)
    assert got == (12 + 13 + 14 + 15) / 3
    agnostic = class_box_l1(own[:, :4], other[:, :4], torch.tensor([2, 1, 2]), 2)
    assert agnostic == (8 + 9 + 10 + 11) / 3


def test_no_loop_over_instances_and_linear_memory():
    """Sixteen times the instances: as many operators, and no more than sixteen times the elements, edges apart."""

    def work(count):
        s_fg, t_fg, s_bg, t_bg, logits = batch((count, count + 1), (2 * count, 2 * count + 1))
        leaves = [t.requires_grad_() for t in (*s_fg, *s_bg)]
        edges = [(n, n) for n in (3 * count, 3 * count + 2)]
        with Operators(but=edges) as done:
            losses = InstanceGraphLoss(mine_thr=0.0)(s_fg, t_fg, s_bg, t_bg, logits)
            sum(losses.values()).backward()
        assert all(leaf.grad is not None for leaf in leaves)
        return done

    few, many = work(16), work(256)
    assert few.calls == many.calls > 50
    assert many.elements <= 16 * few.elements


def test_bad_arguments_of_the_loss():
    s_fg, t_fg, s_bg, t_bg, logits = batch()
    graph = InstanceGraphLoss()
    with pytest.raises(ValueError, match='pooled foreground features of the same shape'):
        graph(s_fg, [t[:, :2] for t in t_fg])
    with pytest.raises(ValueError, match='pooled background features of the same shape'):
        graph(s_fg, t_fg, s_bg)
    with pytest.raises(ValueError, match='teacher_bg_logits; give them, or set mine_thr=None'):
        graph(s_fg, t_fg, s_bg, t_bg)
    with pytest.raises(ValueError, match='max_nodes must be at least 1'):
        InstanceGraphLoss(max_nodes=0)
    with pytest.raises(ValueError, match="node_bg must be None or a dict of .'alpha', 'weight'"):
        InstanceGraphLoss(node_bg=dict(wieght=1.0))
    with pytest.raises(TypeError, match='roi_cls must be a dict or None, got 3.0'):
        InstanceGraphDistillHook(TEACHER, roi_cls=3.0)


# The hook on detectors, without a runner.


@pytest.mark.parametrize('name', ['faster_rcnn', 'cascade_rcnn'])
def test_two_stage_equals_slow_loops(name):
    hook = InstanceGraphDistillHook(tiny_teacher(name))
    model = start_hook(hook, tiny_detector(name, rois=12))
    inputs, samples = drawn_batch()
    _, got, records = distilled(hook, model, inputs, samples)
    call = records.calls('roi_head.bbox_loss()')[0]
    own, features, results = call.output, call.args[-2], call.args[-1]
    teacher = hook.teacher.model
    with torch.no_grad():
        other_features = teacher.extract_feat(inputs)
    extractor, head = (
        part[0] if isinstance(part, nn.ModuleList) else part
        for part in (model.roi_head.bbox_roi_extractor, teacher.roi_head.bbox_head)
    )
    sides = [[], [], [], [], []]
    cls = reg = 0.0
    row = 0
    for i, result in enumerate(results):
        pooled = [[], [], [], [], []]
        boxes = [*result.pos_priors, *result.neg_priors]
        for j, box in enumerate(boxes):
            roi = torch.cat([torch.tensor([float(i)]), box])[None]
            s, t = (extractor(list(f[:4]), roi)[0] for f in (features, other_features))
            logits, deltas = (x[0] for x in head(t[None]))
            positive = j < len(result.pos_priors)
            for at, value in ((0, s), (1, t)) if positive else ((2, s), (3, t), (4, logits)):
                pooled[at].append(value)
            q = logits.softmax(0)
            cls += (q * (q.log() - own['cls_score'][row].log_softmax(0))).sum()
            if positive:
                at = 0 if name == 'cascade_rcnn' else 4 * int(result.pos_gt_labels[j])
                reg += (own['bbox_pred'][row] - deltas).abs()[at : at + 4].sum()
            row += 1
        for side, values in zip(sides, pooled):
            side.append(torch.stack(values))
    expected = {}
    for key, value in slow_graph_of_classes(sides, 6).items():
        expected[key] = dict(loss_node_fg=0.5, loss_node_bg=0.5, loss_edge=2.0)[key] * value
    expected['loss_feat'] = 0.5 * sum(
        ((s - t) ** 2).mean() for s, t in zip(features, other_features)
    )
    expected['loss_roi_cls'] = 3.0 * cls / (row * 7)
    expected['loss_roi_reg'] = reg / row
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(
            got[key], value, rtol=1e-4, atol=1e-6, msg=lambda m, k=key: f'{k}: {m}'
        )
    assert len(features) == 5 and row == 24


def slow_graph_of_classes(sides, classes):
    """:func:`slow_graph` for another number of classes than 4: the background is moved to column 4."""
    *features, logits = sides
    others = [torch.logsumexp(c[:, :-1], 1, keepdim=True) for c in logits]
    empty = [c.new_full((len(c), 3), -1e9) for c in logits]
    five = [torch.cat([o, e, c[:, -1:]], 1) for o, e, c in zip(others, empty, logits)]
    return slow_graph(*features, five)


def normbbox(model):
    model['bbox_head'].update(norm_on_bbox=True)
    return model


def vfnet():
    model = tiny_detector('atss')
    model.update(type='VFNet')
    head = model['bbox_head']
    for key in ('anchor_generator', 'bbox_coder', 'loss_centerness'):
        head.pop(key)
    head.update(
        type='VFNetHead',
        loss_cls=dict(type='VarifocalLoss', use_sigmoid=True, loss_weight=1.0),
        use_atss=False,
        dcn_on_last_conv=False,
    )
    model['train_cfg'] = None
    return model


@pytest.mark.parametrize('name', [*ONE_STAGE, 'fcos-normbbox'])
def test_one_stage_nodes_are_the_detections(name):
    """What the head says while it is trained is decoded as if it were tested."""
    model = tiny_detector(name.partition('-')[0])
    model = normbbox(model) if name.endswith('normbbox') else model
    hook = InstanceGraphDistillHook(
        dict(config=dict(model=model, default_scope='mmdet')), roi_cls=None, roi_reg=None
    )
    student = start_hook(hook, model)
    inputs, samples = drawn_batch()
    student.backbone.eval()  # statistics of the images, or those of training, in both passes
    found = []
    detections = hook.detections
    hook.detections = lambda *args: found.append(detections(*args)) or found[0]
    modes = [m.training for m in student.modules()]
    _, _, records = distilled(hook, student, inputs, samples)
    assert [m.training for m in student.modules()] == modes
    assert len(records.calls('bbox_head')) == 1  # other hooks see the head run once
    records.disarm()
    student.bbox_head.test_cfg = DETECTIONS
    with evaluating(student), torch.no_grad():
        expected = student.bbox_head.predict(student.extract_feat(inputs), samples, rescale=False)
    for got, image in zip(found[0], expected):
        assert 0 < len(got) <= 100
        torch.testing.assert_close(got, image.bboxes)


def test_one_stage_losses_equal_slow_loops():
    hook = InstanceGraphDistillHook(
        tiny_teacher('retinanet'), feat=0.5, edge=1.0, roi_cls=dict(weight=1.0)
    )
    model = start_hook(hook, tiny_detector('retinanet'))
    inputs, samples = drawn_batch()
    _, got, records = distilled(hook, model, inputs, samples)
    features, outs = records.calls('bbox_head')[0].args[0], records['bbox_head']
    boxes = hook.detections(model.bbox_head, features, outs, [s.metainfo for s in samples])
    teacher = hook.teacher.model
    with torch.no_grad():
        other_features = teacher.extract_feat(inputs)
        other_outs = teacher.bbox_head(other_features)
    strides = [8, 16, 32, 64, 128]
    assert list(hook.extractor.featmap_strides) == strides and hook.extractor.finest_scale == 112
    node = edge = 0.0
    for i, image in enumerate(boxes):
        pooled = []
        for box in image:
            side = ((box[2] - box[0]) * (box[3] - box[1])).sqrt()
            level = int((side / 112).log2().floor().clamp(0, 4))  # below 224 P3, below 448 P4 ...
            roi = torch.cat([torch.tensor([float(i)]), box])[None]
            layer = hook.extractor.roi_layers[level]
            assert layer.spatial_scale == 1 / strides[level] and layer.output_size == (7, 7)
            pooled.append([layer(f[level], roi)[0] for f in (features, other_features)])
        own, other = (torch.stack(side) for side in zip(*pooled))
        node += ((own - other) ** 2).mean()
        edges = [F.normalize(n.flatten(1), dim=1) for n in (own, other)]
        edge += 0.5 * ((edges[0] @ edges[0].T - edges[1] @ edges[1].T) ** 2).mean()
    labels, label_weights = records['bbox_head.get_targets()'][:2]
    kl, count, l1, positives = 0.0, 0, 0.0, 0
    for level in range(5):
        for i in range(len(samples)):
            cls = [
                o[0][level][i].view(9, 6, -1).permute(2, 0, 1).reshape(-1, 6)
                for o in (outs, other_outs)
            ]
            box = [
                o[1][level][i].view(9, 4, -1).permute(2, 0, 1).reshape(-1, 4)
                for o in (outs, other_outs)
            ]
            counted = label_weights[level][i] > 0
            q = cls[1][counted].softmax(1)
            kl += (q * (q.log() - cls[0][counted].log_softmax(1))).sum()
            count += 6 * int(counted.sum())
            positive = labels[level][i] < 6
            l1 += (box[0] - box[1])[positive].abs().sum()
            positives += int(positive.sum())
    assert 0 < positives and count < 6 * sum(w.numel() for w in label_weights)
    expected = dict(
        loss_feat=0.5 * sum(((s - t) ** 2).mean() for s, t in zip(features, other_features)),
        loss_node_fg=0.5 * node,
        loss_edge=1.0 * edge,
        loss_cls_kd=kl / count,
        loss_reg_kd=l1 / positives,
    )
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(
            got[key], value, rtol=1e-4, atol=1e-6, msg=lambda m, k=key: f'{k}: {m}'
        )


def test_head_that_says_something_else_while_trained():
    """VFNet returns more in training than `predict_by_feat` takes."""
    hook = InstanceGraphDistillHook(
        dict(config=dict(model=vfnet(), default_scope='mmdet')), roi_cls=None, roi_reg=None
    )
    student = start_hook(hook, vfnet())
    with torch.no_grad():
        features = student.extract_feat(drawn_batch()[0])
        outs = student.bbox_head(features)
    boxes = hook.detections(
        student.bbox_head, features, outs, [s.metainfo for s in drawn_batch()[1]]
    )
    assert len(outs) != 2 and all(0 < len(b) <= 100 and b.shape[1] == 4 for b in boxes)


@pytest.mark.parametrize('name', ['faster_rcnn', 'retinanet'])
@pytest.mark.parametrize('objects', [0, 1])
def test_images_without_objects_and_with_one_roi(name, objects):
    """Nothing, or one RoI alone, to compare: every loss is a number and every parameter has a gradient."""
    hook = InstanceGraphDistillHook(tiny_teacher(name))
    model = start_hook(hook, tiny_detector(name, rois=1 if objects else 8))
    inputs, samples = drawn_batch(objects=objects)
    base, losses, _ = distilled(hook, model, inputs, samples)
    values = [v for b in (base, losses) for k, v in b.items() if 'loss' in k]
    total = sum(sum(v).sum() if isinstance(v, list) else v.sum() for v in values)
    total.backward()
    assert all(v.isfinite() for v in losses.values()) and losses['loss_feat'] > 0
    assert all(p.grad.isfinite().all() for p in model.neck.parameters())
    if name == 'faster_rcnn':
        assert (losses['loss_node_fg'] == 0) or objects
        if objects:  # a graph of one node has no edges
            assert losses['loss_edge'].abs() < 1e-10


@pytest.mark.parametrize('name', ['faster_rcnn', 'retinanet', 'gfl'])
def test_classes_absent_from_the_batch_and_an_image_without_objects_beside_one_with(name):
    hook = InstanceGraphDistillHook(tiny_teacher(name), **OPTIONS.get(name, {}))
    model = start_hook(hook, tiny_detector(name))
    inputs, samples = drawn_batch()
    samples[0].gt_instances.labels.fill_(4)
    samples[1].gt_instances = samples[1].gt_instances[:0]
    _, losses, _ = distilled(hook, model, inputs, samples)
    assert all(v.isfinite() and v >= 0 for v in losses.values())
    assert all(losses[k] > 0 for k in ('loss_feat', 'loss_node_fg', 'loss_edge'))
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.neck.parameters())


def test_a_teacher_of_another_normalisation_sees_its_own_pixels():
    """The same weights behind another normalisation of the same image: the same features."""
    bgr = dict(type='DetDataPreprocessor', mean=[10.0, 20.0, 30.0], std=[2.0, 4.0, 8.0])
    rgb = dict(bgr, mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0], bgr_to_rgb=True)
    teacher, model = (dict(tiny_detector('faster_rcnn'), data_preprocessor=p) for p in (bgr, rgb))
    hook = InstanceGraphDistillHook(dict(config=dict(model=teacher, default_scope='mmdet')))
    student = start_hook(hook, model)
    pixels = torch.randint(0, 256, (2, 3, 96, 128), generator=torch.Generator().manual_seed(0))
    hook.teacher.see(pixels.flip(1).float(), drawn_batch()[1], student.data_preprocessor)
    mean, std = (torch.tensor(bgr[k]).view(1, 3, 1, 1) for k in ('mean', 'std'))
    torch.testing.assert_close(hook.teacher.inputs, (pixels - mean) / std)


def test_losses_are_float32_under_autocast():
    hook = InstanceGraphDistillHook(tiny_teacher('retinanet'))
    model = start_hook(hook, tiny_detector('retinanet'))
    inputs, samples = drawn_batch()
    with torch.autocast('cpu', torch.bfloat16):
        _, losses, records = distilled(hook, model, inputs, samples)
    assert records['bbox_head'][0][0].dtype == torch.bfloat16
    assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values())


# Detectors that do not fit.


def test_detectors_that_do_not_fit_are_refused():
    def refused(student, teacher, match, **options):
        config = dict(config=dict(model=teacher, default_scope='mmdet'))
        with pytest.raises(ValueError, match=match):
            start_hook(InstanceGraphDistillHook(config, **options), student)

    faster, retina = tiny_detector('faster_rcnn'), tiny_detector('retinanet')
    wide = tiny_detector('faster_rcnn', channels=64)
    refused(faster, wide, r'same width: the student.s are \[32, .*`neck.out_channels`')
    refused(faster, retina, 'feature maps of the same strides')
    short = tiny_detector('retinanet')
    short['neck'].update(num_outs=4)
    refused(retina, short, 'the student has 5, the teacher 4. Set `num_outs`')
    classes = tiny_detector('faster_rcnn', classes=4)
    refused(faster, classes, 'agree in cls_channels: the student has 7, the teacher 5. Train')
    refused(faster, classes, 'agree in num_classes.*roi_reg=None', mine_thr=None, roi_cls=None)
    cascade = tiny_detector('cascade_rcnn')
    refused(faster, cascade, 'agree in reg_class_agnostic.*Set roi_reg=None')
    other = tiny_detector('faster_rcnn')
    other['roi_head']['bbox_roi_extractor']['roi_layer']['output_size'] = 5
    refused(faster, other, r'agree in roi_size: .*\(7, 7\).*Give the teacher')
    sigmoid = tiny_detector('faster_rcnn')
    sigmoid['roi_head']['bbox_head']['loss_cls'] = dict(type='CrossEntropyLoss', use_sigmoid=True)
    refused(sigmoid, sigmoid, 'need a softmax over the classes')
    refused(retina, tiny_detector('retinanet', classes=4), 'same classes and anchors')
    refused(retina, tiny_detector('gfl'), 'same classes and anchors')
    refused(tiny_detector('fcos'), tiny_detector('fcos'), 'labels anchors.*Set roi_cls=None')
    refused(
        tiny_detector('gfl'), tiny_detector('gfl'), 'predicts 68 numbers a box. Set roi_reg=None'
    )
    rpn_teacher = copy.deepcopy(faster) | dict(type='RPN')
    rpn_teacher = {
        k: v for k, v in rpn_teacher.items() if k not in ('roi_head', 'train_cfg', 'test_cfg')
    }
    rpn_teacher.update(
        train_cfg=dict(rpn=faster['train_cfg']['rpn']), test_cfg=dict(rpn=faster['test_cfg']['rpn'])
    )
    refused(faster, rpn_teacher, 'needs a standard or cascade RoI head; the teacher')


def test_only_pyramids_of_one_width_are_pooled():
    maps = [torch.zeros(1, 8, n, n) for n in (8, 4, 2)]
    assert list(dense_extractor(maps, (64, 64)).featmap_strides) == [8, 16, 32]
    match = r'one width, finest level first; its levels have .*\n*.*Use an FPN, or set node_fg=None'
    for bad in (maps[::-1], [maps[0], torch.zeros(1, 16, 4, 4)]):
        with pytest.raises(ValueError, match=match):
            dense_extractor(bad, (64, 64))


def test_other_students_are_refused():
    class Segmentor(nn.Module):
        def __init__(self):
            super().__init__()
            self.bbox_head = nn.Conv2d(3, 3, 1)

    hook = InstanceGraphDistillHook(tiny_teacher('retinanet'))
    with pytest.raises(ValueError, match='needs a TwoStageDetector.*the student is Segmentor'):
        start_hook(hook, Segmentor())


def test_a_teacher_with_another_input_size_is_refused():
    teacher = dict(tiny_teacher('retinanet'), input_size=(64, 64))
    hook = InstanceGraphDistillHook(teacher)
    model = start_hook(hook, tiny_detector('retinanet'))
    with pytest.raises(ValueError, match='no `input_size` of the teacher'):
        distilled(hook, model, *drawn_batch())


def test_pyramids_are_measured_without_a_trace():
    model = build_detector(tiny_detector('faster_rcnn'))
    model.backbone.layer1.eval()
    before, modes = weights(model), [m.training for m in model.modules()]
    maps = blank_features(model)
    assert_equal_weights(before, weights(model))
    assert [m.training for m in model.modules()] == modes
    assert pyramid_strides((256, 256), maps) == [4, 8, 16, 32, 64]
    # Coarse levels round up: 320x240 has 3x2 cells of stride 128.
    with torch.no_grad():
        for size in ((240, 320), (96, 128), (750, 1333)):
            maps = build_detector(tiny_detector('retinanet')).extract_feat(torch.zeros(1, 3, *size))
            assert pyramid_strides(size, maps) == [8, 16, 32, 64, 128]
            assert pyramid_strides(size, maps[::-1]) == [128, 64, 32, 16, 8]


# The hook on the stock runner.


OPTIONS = dict(gfl=dict(roi_reg=None), fcos=dict(roi_cls=None, roi_reg=None))
ROI_TERMS = {'loss_node_bg', 'loss_roi_cls', 'loss_roi_reg'}


def dsig(name, **options):
    return dict(type='mmextra.InstanceGraphDistillHook', teacher=tiny_teacher(name), **options)


@pytest.mark.parametrize('name', SOURCES)
def test_two_iterations(name, shapes_root, tmp_path):
    hooks = [dsig(name, **OPTIONS.get(name, {}))]
    if name == 'gfl':  # two methods, one teacher
        hooks.append(dict(type='mmextra.LocalizationDistillationHook', teacher=tiny_teacher(name)))
    runner = train(tiny_run(name, shapes_root, tmp_path, hooks))
    losses = losses_of(runner)
    expected = {'loss_feat', 'loss_node_fg', 'loss_edge'}
    expected |= ROI_TERMS if name in TWO_STAGE else set()
    expected |= {'loss_cls_kd', 'loss_reg_kd'} if name in ('retinanet', 'atss') else set()
    expected |= {'loss_cls_kd', 'loss_ld'} if name == 'gfl' else set()
    assert expected <= set(losses), name
    assert all(len(v) == 2 and all(0 <= x < 1e4 for x in v) for v in losses.values())
    assert all(max(losses[k]) > 0 for k in expected)
    if name == 'gfl':
        first, second = (h for h in runner.hooks if hasattr(h, 'teacher'))
        assert first.teacher is second.teacher
    stock = build_detector(tiny_detector(name))
    saved = read_checkpoint(str(tmp_path / 'epoch_1.pth'))['state_dict']
    stock.load_state_dict(saved, strict=True)


def test_zero_weights_are_the_plain_run(shapes_root, tmp_path):
    """Bit for bit, random numbers included: the sampler of RoIs draws some in every iteration."""
    off = dict.fromkeys(['feat', 'node_fg', 'edge', 'roi_reg'], 0.0)
    off.update(node_bg=dict(weight=0.0), roi_cls=dict(weight=0.0))
    results = []
    for hooks in ([], [dsig('faster_rcnn', **off)]):
        cfg = tiny_run('faster_rcnn', shapes_root, tmp_path / f'{len(hooks)}', hooks)
        runner: Runner = train(cfg)
        results.append((weights(runner.model), torch.get_rng_state()))
    assert_equal_weights(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_distillation_draws_no_random_numbers(shapes_root, tmp_path):
    """With weights that vanish, the sampled RoIs stay those of the plain run."""
    hook = dsig('faster_rcnn', **dict(FEATURES, feat=1e-30, node_fg=1e-30, edge=1e-30))
    states = []
    for hooks in ([], [hook]):
        train(tiny_run('faster_rcnn', shapes_root, tmp_path / f'{len(hooks)}', hooks))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_features_alone_run_no_head_of_the_teacher():
    hook = HOOKS.build(
        dict(
            type='mmextra.InstanceGraphDistillHook', teacher=tiny_teacher('faster_rcnn'), **FEATURES
        )
    )
    assert isinstance(hook, InstanceGraphDistillHook) and isinstance(
        hook.graph, MODELS.get('InstanceGraphLoss')
    )
    model = start_hook(hook, tiny_detector('faster_rcnn'))
    calls = []
    hook.teacher.model.roi_head.bbox_head.register_forward_hook(lambda *_: calls.append(1))
    _, losses, _ = distilled(hook, model, *drawn_batch())
    assert set(losses) == {'loss_feat'} and not calls
    assert isinstance(hook.teacher, Teacher)
