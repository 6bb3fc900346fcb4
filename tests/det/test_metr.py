"""METR: joint training on data sets with label spaces of their own."""

import copy
import importlib.util
import itertools
import json
import os
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.datasets import CocoDataset
from mmdet.models.task_modules import HungarianAssigner
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, LabelData
from tiny_detectors import drawn_batch, plain_config_dumps  # noqa: F401
from training import ROOT, assert_equal_weights, coco_dataset, train, weights

import mmextra.registry
from mmextra.det.metr import (
    AsymmetricMultiLabelLoss,
    AttachLabelSpace,
    CategoryExtractionMetric,
    GroupHungarianAssigner,
    LabelSpaceEvaluator,
    SizePowerSampler,
    embed_names,
    resolve_label_space,
    stock_weights,
)
from mmextra.det.metr.embeddings import LabelSpaces, hashed_characters
from mmextra.det.metr.queries import group_layout, select_categories

SHAPES = ('circle', 'square', 'triangle', 'star', 'cross', 'heart')
SPACES = dict(a=SHAPES[:4], b=('circle', 'cat', 'dog'))
CONFIGS = sorted(p.name for p in (ROOT / 'configs' / 'metr').glob('*.py'))
COSTS = [
    dict(type='mmdet.FocalLossCost', weight=2.0),
    dict(type='mmdet.BBoxL1Cost', weight=5.0, box_format='xywh'),
    dict(type='mmdet.IoUCost', iou_mode='giou', weight=2.0),
]


@pytest.fixture
def tool(monkeypatch):
    """A function that loads a script by its name below ``tools/``, as Python would run it."""

    def load(name: str):
        monkeypatch.syspath_prepend(str(ROOT / 'tools'))
        spec = importlib.util.spec_from_file_location(
            f'tool_{Path(name).stem}', ROOT / 'tools' / name
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@cache
def _small() -> dict:
    return Config.fromfile(ROOT / 'configs/_base_/models/dino_small.py').model.to_dict()


def tiny_dino(queries: int = 12, width: int = 32) -> dict:
    """The small DINO of the demonstrations, smaller still."""

    def narrow(node):
        if isinstance(node, dict):
            return {k: narrow(v) for k, v in node.items()}
        return width if node == 64 else node

    model = narrow(copy.deepcopy(_small()))
    model['backbone']['base_channels'] = 8
    model['neck'].update(in_channels=[16, 32, 64])
    model['positional_encoding']['num_feats'] = width // 2
    model['encoder']['layer_cfg']['ffn_cfg']['feedforward_channels'] = 32
    model['decoder']['layer_cfg']['ffn_cfg']['feedforward_channels'] = 32
    model.update(num_queries=queries)
    return model


def tiny_metr(queries: int = 12, width: int = 32, **options) -> dict:
    model = tiny_dino(queries, width)
    model.update(
        type='mmextra.METR',
        label_spaces=SPACES,
        embeddings=dict(source='hash', dims=16),
        num_categories=3,
        cem=dict(feedforward_channels=32),
    )
    model['bbox_head']['type'] = 'mmextra.METRHead'
    model['train_cfg'] = dict(assigner=dict(type='mmextra.GroupHungarianAssigner'))
    model.update(options)
    return model


TINY = dict(
    METR=tiny_metr(),
    AnyWidthDINO=tiny_dino(),
    METRHead=dict(tiny_metr()['bbox_head'], num_pred_layer=3),
    CategoryExtractionModule=dict(embed_dims=32, feedforward_channels=32),
    AsymmetricMultiLabelLoss=dict(),
    GroupHungarianAssigner=dict(),
    AttachLabelSpace=dict(name='a'),
    SizePowerSampler=dict(power=0.5, seed=0),
    LabelSpaceCheckHook=dict(),
    LabelSpaceEvaluator=dict(metrics=[dict(type='mmdet.CocoMetric')], label_spaces=['a']),
    CategoryExtractionMetric=dict(num_categories=2),
)


def build(model: dict, seed: int = 0):
    torch.manual_seed(seed)
    detector = MODELS.build(ConfigDict(copy.deepcopy(model), _scope_='mmdet'))
    detector.init_weights()
    return detector


def batch(spaces=('a', 'b'), empty=(), sizes=None):
    """Drawn images and boxes whose labels lie within the label spaces."""
    images, samples = drawn_batch(len(spaces), size=(64, 96))
    for i, (sample, space) in enumerate(zip(samples, spaces)):
        gts = sample.gt_instances
        gts.labels = gts.labels % len(SPACES[space])
        gts.bboxes = gts.bboxes / 1.6
        sample.gt_instances = gts[:0] if i in empty else gts
        sample.set_metainfo(dict(label_space=space, img_shape=(sizes or {}).get(i, (64, 96))))
        sample.set_metainfo(dict(img_path=f'{i}.jpg', img_id=i))
    return images, samples


def losses(model, images, samples, seed=0) -> dict:
    torch.manual_seed(seed)
    return model.train()(images, copy.deepcopy(samples), mode='loss')


def total(found: dict):
    return sum(v for k, v in found.items() if 'loss' in k)


def predict(model, images, samples):
    with torch.no_grad():
        return model.eval()(images, copy.deepcopy(samples), mode='predict')


# 1. Group bipartite matching


def queries_and_boxes(num_queries=6, num_boxes=4, groups=2, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def boxes(count):
        corner = torch.rand(count, 2, generator=generator) * 60
        return torch.cat([corner, corner + 5 + 30 * torch.rand(count, 2, generator=generator)], 1)

    queries = InstanceData(
        scores=torch.randn(num_queries, 1, generator=generator),
        bboxes=boxes(num_queries),
        groups=torch.randint(0, groups, (num_queries,), generator=generator),
    )
    labels = torch.randint(0, groups, (num_boxes,), generator=generator)
    return queries, InstanceData(bboxes=boxes(num_boxes), labels=labels), dict(img_shape=(100, 100))


def costs_of(queries, gts, meta):
    gts = InstanceData(bboxes=gts.bboxes, labels=torch.zeros_like(gts.labels))
    return sum(c(queries, gts, meta) for c in HungarianAssigner(COSTS).match_costs)


@pytest.mark.parametrize('model', [tiny_dino(), tiny_metr()], ids=['DINO', 'METR'])
def test_loaded_weights_are_not_drawn_anew(model, tmp_path):
    trained = build(model)
    for parameter in trained.parameters():
        parameter.data.normal_()
    torch.save(dict(state_dict=trained.state_dict()), tmp_path / 'trained.pth')
    load = dict(type='Pretrained', checkpoint=str(tmp_path / 'trained.pth'))
    loaded = build(dict(model, init_cfg=load), seed=1)
    assert_equal_weights(weights(loaded), weights(trained))
    loaded.init_weights()  # a runner does so with a model that it is given
    assert_equal_weights(weights(loaded), weights(trained))


@pytest.mark.parametrize('seed', range(3))
def test_one_group_is_the_stock_matching(seed):
    queries, gts, meta = queries_and_boxes(20, 7, groups=1, seed=seed)
    ours = GroupHungarianAssigner(COSTS).assign(queries, gts, meta)
    stock = HungarianAssigner(COSTS).assign(queries, gts, meta)
    assert torch.equal(ours.gt_inds, stock.gt_inds)
    assert torch.equal(ours.labels, stock.labels) and ours.num_gts == 7


@pytest.mark.parametrize('seed', range(6))
def test_groups_are_matched_at_least_cost(seed):
    queries, gts, meta = queries_and_boxes(6, 4, groups=2, seed=seed)
    matched = GroupHungarianAssigner().assign(queries, gts, meta).gt_inds
    found, box = matched.nonzero().squeeze(1), matched[matched > 0] - 1
    assert torch.equal(queries.groups[found], gts.labels[box])
    cost, best, count = costs_of(queries, gts, meta), 0.0, 0
    for group in range(2):
        rows = (queries.groups == group).nonzero().squeeze(1).tolist()
        columns = (gts.labels == group).nonzero().squeeze(1).tolist()
        pairs = min(len(rows), len(columns))
        count += pairs
        best += min(
            sum(cost[r, c].item() for r, c in zip(chosen, kept))
            for chosen in itertools.permutations(rows, pairs)
            for kept in itertools.combinations(columns, pairs)
        )
    assert len(found) == count
    assert cost[found, box].sum().item() == pytest.approx(best, abs=1e-5)


def test_groups_without_boxes_are_background():
    queries, gts, meta = queries_and_boxes(8, 3)
    queries.groups, gts.labels = torch.arange(8) % 4, torch.zeros(3, dtype=torch.long)
    result = GroupHungarianAssigner().assign(queries, gts, meta)
    assert (result.gt_inds[queries.groups > 0] == 0).all()
    assert (result.labels == torch.where(result.gt_inds > 0, 0, -1)).all()
    nothing = GroupHungarianAssigner().assign(queries, gts[:0], meta)
    assert (nothing.gt_inds == 0).all() and nothing.num_gts == 0


def test_more_boxes_than_queries(monkeypatch):
    told = []
    monkeypatch.setattr(
        'mmextra.det.metr.assigner.print_log', lambda text, *_, **__: told.append(text)
    )
    queries, gts, meta = queries_and_boxes(6, 9, groups=1)
    assigner = GroupHungarianAssigner()
    for _ in range(2):
        matched = assigner.assign(queries, gts, meta).gt_inds
    assert (matched > 0).all() and matched.unique().numel() == 6
    assert len(told) == 1 and '3 of 9 boxes' in told[0]


def test_one_matrix_and_one_assignment_for_each_category(monkeypatch):
    calls = []
    solve = mmextra.det.metr.assigner.linear_sum_assignment
    monkeypatch.setattr(
        'mmextra.det.metr.assigner.linear_sum_assignment', lambda c: calls.append(c) or solve(c)
    )
    assigner = GroupHungarianAssigner()
    counted = [0] * 3
    for i, cost in enumerate(assigner.match_costs):

        def counting(*args, i=i, cost=cost, **kwargs):
            counted[i] += 1
            return cost(*args, **kwargs)

        assigner.match_costs[i] = counting
    queries, gts, meta = queries_and_boxes(60, 20, groups=10)
    assigner.assign(queries, gts, meta)
    assert counted == [1] * 3 and len(calls) == gts.labels.unique().numel() > 1


def test_bfloat16_costs_are_matched():
    queries, gts, meta = queries_and_boxes(6, 4)
    queries.scores, queries.bboxes = queries.scores.bfloat16(), queries.bboxes.bfloat16()
    assert (GroupHungarianAssigner().assign(queries, gts, meta).gt_inds > 0).any()


def test_queries_without_groups_are_refused():
    queries, gts, meta = queries_and_boxes()
    del queries.groups
    with pytest.raises(ValueError, match='groups'):
        GroupHungarianAssigner().assign(queries, gts, meta)


# 2. and 3. Label spaces


def test_classes_of_another_set_get_no_gradient():
    model, (images, samples) = build(tiny_metr()), batch(('a', 'a'))
    spaces = model.label_spaces
    spaces.table = spaces.table.clone().requires_grad_()
    total(losses(model, images, samples)).backward()
    own = torch.zeros(len(spaces.table), dtype=torch.bool)
    own[spaces.rows['a']] = True
    assert (spaces.table.grad[~own] == 0).all() and (~own).sum() == 2
    assert (spaces.table.grad[own].abs().sum(1) > 0).all()


def test_loss_does_not_depend_on_the_names_of_another_set():
    images, samples = batch(('a', 'a'))
    first = losses(build(tiny_metr()), images, samples)
    other = dict(SPACES, b=('tiger', 'star', 'lion', 'bear', 'seal'))
    second = losses(build(tiny_metr(label_spaces=other)), images, samples)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    changed = losses(build(tiny_metr(label_spaces=dict(SPACES, a=tuple('wxyz')))), images, samples)
    assert not torch.equal(first['loss_cem'], changed['loss_cem'])


def test_same_name_same_embedding():
    spaces = LabelSpaces(SPACES, dict(source='hash', dims=16), 32)
    assert spaces.table.shape == (6, 16) and 'table' not in spaces.state_dict()
    assert spaces.rows['a'][0] == spaces.rows['b'][0]
    renamed = LabelSpaces(dict(SPACES, b=('circle', 'square', 'dog')), dict(source='hash'), 32)
    assert len(renamed.table) == 5 and renamed.rows['a'][1] == renamed.rows['b'][1]
    text, sizes = spaces(['a', 'b'])
    assert text.shape == (2, 4, 32) and sizes.tolist() == [4, 3]
    assert torch.equal(text[0, 0], text[1, 0])
    assert not text.isnan().any() and not torch.allclose(text[0, 0], text[0, 1])


def test_order_of_labels_does_not_matter():
    images, samples = batch(('a', 'a'))
    order = [2, 0, 3, 1]
    model = build(tiny_metr(queries=10))
    shuffled = build(tiny_metr(queries=10, label_spaces=dict(SPACES, a=[SHAPES[i] for i in order])))
    shuffled.load_state_dict(model.state_dict())
    for one, other in zip(predict(model, images, samples), predict(shuffled, images, samples)):
        one, other = one.pred_instances, other.pred_instances
        torch.testing.assert_close(one.scores, other.scores)
        torch.testing.assert_close(one.bboxes, other.bboxes)
        assert one.labels.tolist() == [order[label] for label in other.labels.tolist()]
        assert one.label_names == other.label_names


# 4. Category extraction


def test_asymmetric_loss_values():
    loss = AsymmetricMultiLabelLoss()
    half = torch.zeros(1, dtype=torch.double)
    assert loss(half, torch.ones(1)).item() == pytest.approx(0.693147, abs=1e-6)
    assert loss(half, torch.zeros(1)).item() == pytest.approx(0.024515, abs=1e-6)
    assert loss(torch.logit(torch.tensor([0.05, 0.01])), torch.zeros(2)).item() == 0


@pytest.mark.parametrize('gamma_pos,gamma_neg,margin', [(0, 4, 0.05), (1, 3, 0.0), (2, 0, 0.2)])
def test_asymmetric_loss_against_loops(gamma_pos, gamma_neg, margin):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, generator=generator, dtype=torch.double) * 3
    target = (torch.rand(3, 4, generator=generator) < 0.4).long()
    valid = torch.rand(3, 4, generator=generator) < 0.8
    expected = 0.0
    for x, y, v in zip(logits.flatten(), target.flatten(), valid.flatten()):
        p = float(x.sigmoid())
        p_m = max(p - margin, 0)
        positive = (1 - p) ** gamma_pos * np.log(p)
        expected -= float(v) * (positive if y else p_m**gamma_neg * np.log(1 - p_m))
    loss = AsymmetricMultiLabelLoss(gamma_pos, gamma_neg, margin, loss_weight=0.5)
    assert loss(logits, target, valid, 3).item() == pytest.approx(expected / 6, rel=1e-9)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, target, valid), logits)
    extreme = torch.tensor([-80.0, 80.0, -80.0, 80.0], requires_grad=True)
    value = loss(extreme, torch.tensor([0, 0, 1, 1]))
    value.backward()
    assert value.isfinite() and extreme.grad.isfinite().all()
    with pytest.raises(ValueError, match='margin'):
        AsymmetricMultiLabelLoss(margin=1.0)


def test_padding_does_not_count():
    cem = MODELS.build(
        dict(TINY['CategoryExtractionModule'], type='mmextra.CategoryExtractionModule')
    )
    text, memory, pos = torch.randn(2, 5, 32), torch.randn(2, 7, 32), torch.randn(2, 7, 32)
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[0, 4:] = True
    logits = cem(text, memory, pos, mask)
    alone = cem(text[:1, :3], memory[:1, :4], pos[:1, :4])
    torch.testing.assert_close(logits[:1, :3], alone)
    present = torch.tensor([[1, 0, 0, 0, 0], [1, 0, 1, 0, 0]]).bool()
    valid = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    loss = cem.loss(logits, present, valid)
    logits[0, 3:] = 50.0
    assert torch.equal(loss, cem.loss(logits, present, valid))
    expected = sum(
        AsymmetricMultiLabelLoss()(logits[i][v], present[i][v]) for i, v in enumerate(valid)
    )
    torch.testing.assert_close(loss, expected / 3)  # 3 present pairs
    assert cem.loss(logits, present & False, valid).isfinite()


def test_classes_of_crowds_are_absent(shapes_root, tmp_path):
    """Crowds reach the model as ignored instances."""
    content = json.loads((shapes_root / 'annotations/instances_train.json').read_text())
    image = content['images'][0]['id']
    kept = [a for a in content['annotations'] if a['image_id'] == image]
    kept[0].update(iscrowd=1, category_id=6)
    for annotation in kept[1:]:
        annotation['category_id'] = 1
    content['annotations'] = kept
    (tmp_path / 'crowd.json').write_text(json.dumps(content))
    cfg = dict(
        coco_dataset(shapes_root, 'train', train=True), ann_file=str(tmp_path / 'crowd.json')
    )
    cfg.pop('type')
    init_default_scope('mmdet')
    sample = CocoDataset(**cfg)[0]['data_samples']
    model = build(tiny_metr(label_spaces=dict(shapes=SHAPES)))
    assert sample.ignored_instances.labels.tolist() == [5]
    present = model._present_categories([sample], ['shapes'], (1, 6))
    assert present.tolist() == [[True] + [False] * 5]


# 5. Which queries ask about what


def layout(num_queries, counts):
    slot, position = group_layout(num_queries, torch.tensor(counts))
    return [torch.bincount(row).tolist() for row in slot], slot, position


def test_queries_are_dealt_out():
    sizes, slot, position = layout(900, [20, 7, 1])
    assert sizes == [[45] * 20, [129] * 4 + [128] * 3, [900]]
    assert all(sum(row) == 900 for row in sizes)
    for row, places in zip(slot, position):
        for group in row.unique():
            assert places[row == group].tolist() == list(range((row == group).sum()))
        assert (row.diff() >= 0).all()


def test_selection_of_categories():
    logits = torch.tensor([[0.0, 5.0, -2.0, 3.0, 9.0], [1.0, 2.0, 0.0, 9.0, 9.0]])
    sizes = torch.tensor([5, 3])
    chosen, counts = select_categories(logits, sizes, 3)
    assert chosen[0].tolist() == [4, 1, 3] and chosen[1].tolist() == [1, 0, 2]
    assert counts.tolist() == [3, 3]
    present = torch.tensor([[0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
    chosen, counts = select_categories(logits, sizes, 4, present)
    assert chosen[0].tolist() == [2, 4, 1, 3] and chosen[1, :3].tolist() == [1, 0, 2]
    assert counts.tolist() == [4, 3]
    many = torch.ones(1, 5, dtype=torch.bool)
    seen = set()
    for _ in range(30):
        chosen, _ = select_categories(logits[:1], sizes[:1], 2, many)
        assert len(set(chosen[0].tolist())) == 2
        seen.update(chosen[0].tolist())
    assert seen == set(range(5))


def test_references_are_the_best_tokens_of_the_category():
    model = build(tiny_metr(queries=10)).eval()
    images, samples = batch(('a', 'b'), sizes={1: (40, 70)})
    feats = model.extract_feat(images)
    encoder_inputs, _ = model.pre_transformer(feats, samples)
    encoded = model.forward_encoder(**encoder_inputs)
    with torch.no_grad():
        decoder_inputs, head_inputs = model.pre_decoder(**encoded, batch_data_samples=samples)
        text, sizes = model.label_spaces(['a', 'b'])
        tokens, anchors = model.gen_encoder_output_proposals(
            *(encoded[k] for k in ('memory', 'memory_mask', 'spatial_shapes'))
        )
        to_box = model.bbox_head.reg_branches[2]
        groups = head_inputs['groups']
        for i in range(2):
            assert groups[i].unique().numel() == 3
            order = list(dict.fromkeys(groups[i].tolist()))
            likeliest = head_inputs['category_logits'][i, : sizes[i]].argsort(descending=True)
            assert order == likeliest[:3].tolist()
            query = 0
            for category in order:
                scores = (tokens[i] * text[i, category]).sum(-1) / 32**0.5 + model.token_bias
                scores[~anchors[i].isfinite().all(-1)] = -torch.inf
                count = int((groups[i] == category).sum())
                for place, token in enumerate(scores.argsort(descending=True)[:count].tolist()):
                    box = (to_box(tokens[i, token]) + anchors[i, token]).sigmoid()
                    torch.testing.assert_close(decoder_inputs['reference_points'][i, query], box)
                    content = model.query_embedding.weight[place] + text[i, category]
                    torch.testing.assert_close(decoder_inputs['query'][i, query], content)
                    query += 1
            assert query == 10


def test_tiny_images_reuse_their_tokens():
    model = build(tiny_metr(queries=60, num_categories=2))
    images, samples = batch(('b', 'b'), sizes={0: (32, 32), 1: (32, 32)})
    images = images[..., :32, :32]
    for sample in samples:
        sample.set_metainfo(dict(batch_input_shape=(32, 32)))
        sample.gt_instances.bboxes = sample.gt_instances.bboxes.clamp(max=32)
    assert total(losses(model, images, samples)).isfinite()
    assert len(predict(model, images, samples)[0].pred_instances) == 40  # max_per_img


# Denoising (8)


def test_denoising_queries_ask_within_the_label_space():
    model = build(tiny_metr(dn_cfg=dict(label_noise_scale=1.0, group_cfg=dict(num_dn_queries=40))))
    generator = model.dn_query_generator
    assert not hasattr(generator, 'label_embedding')
    targets = [
        InstanceData(bboxes=torch.tensor([[4.0, 4, 20, 24]] * n), labels=torch.tensor(labels))
        for n, labels in ((3, [0, 1, 3]), (1, [2]))
    ]
    text = torch.randn(2, 4, 32)
    sizes = torch.tensor([4, 3])
    query, boxes, mask, meta = generator(targets, [(64, 96)] * 2, text, sizes)
    groups = meta['num_denoising_groups']
    assert query.shape == (2, 3 * 2 * groups, 32) and boxes.shape == (2, 3 * 2 * groups, 4)
    assert mask.shape == (3 * 2 * groups + 12,) * 2
    changed = 0
    for i, target in enumerate(targets):
        for column, content in enumerate(query[i]):
            block, place = divmod(column, 3)
            if place >= len(target):
                assert (content == 0).all() and not meta['positive'][i, column]
                continue
            asked = (content == text[i]).all(-1).nonzero().item()
            assert asked < sizes[i]
            same = asked == int(target.labels[place])
            changed += not same
            assert meta['positive'][i, column] == (same and block % 2 == 0)
    assert 0 < changed < query.shape[1]


def test_denoising_targets():
    head = build(tiny_metr()).bbox_head
    gts = InstanceData(
        bboxes=torch.tensor([[10.0, 10, 30, 50], [0, 0, 20, 20]]), labels=torch.tensor([3, 1])
    )
    positive = torch.zeros(8, dtype=torch.bool)
    positive[[0, 5]] = True  # the second label of the first group, the first of the second, changed
    meta = dict(img_shape=(100, 100), dn_positive=positive)
    dn_meta = dict(num_denoising_groups=2, num_denoising_queries=8)
    labels, _, targets, weights_, pos, neg = head._get_dn_targets_single(gts, meta, dn_meta)
    assert labels.tolist() == [0, 1, 1, 1, 1, 0, 1, 1]
    assert weights_.sum(1).tolist() == [4, 0, 0, 0, 0, 4, 0, 0]
    assert pos.tolist() == [0, 5] and len(neg) == 6
    torch.testing.assert_close(targets[0], torch.tensor([0.2, 0.3, 0.2, 0.4]))


# 6. Nothing to find


@pytest.mark.parametrize(
    'spaces,empty,options',
    [
        (('a', 'b'), (0, 1), dict()),
        (('a', 'a'), (), dict()),
        (('b', 'a', 'b'), (1,), dict(use_dn=False)),
        (('a', 'b'), (0,), dict(group_self_attn=True, num_categories=12)),
    ],
)
def test_every_parameter_learns(spaces, empty, options):
    model = build(tiny_metr(**options))
    images, samples = batch(spaces, empty, sizes={0: (51, 83)})
    found = losses(model, images, samples)
    assert all(v.isfinite().all() for v in found.values())
    assert ('dn_loss_cls' in found) == options.get('use_dn', True)
    total(found).backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    if len(empty) == len(spaces):
        boxes = [v.item() for k, v in found.items() if 'bbox' in k or 'iou' in k]
        assert boxes and not any(boxes) and found['cem_recall'] == 1


def test_losses_are_over_the_number_of_boxes():
    """Also of those that find no query."""
    model = build(tiny_metr(queries=2, num_categories=2))
    head = model.bbox_head
    gts = [InstanceData(bboxes=torch.tensor([[4.0, 4, 20, 24]] * 5), labels=torch.zeros(5).long())]
    metas = [dict(img_shape=(64, 96), groups=torch.tensor([0, 1]))]
    logits, boxes = torch.randn(1, 2, 1), torch.rand(1, 2, 4) * 0.3 + 0.3
    loss_cls, loss_bbox, _ = head.loss_by_feat_single(logits, boxes, gts, metas)
    target = torch.tensor([12.0, 14, 16, 20]) / torch.tensor([96.0, 64, 96, 64])
    torch.testing.assert_close(loss_bbox, 5 * (boxes[0, 0] - target).abs().sum() / 5)
    p = logits[0, :, 0].sigmoid()
    expected = -0.25 * (1 - p[0]) ** 2 * p[0].log() - 0.75 * p[1] ** 2 * (1 - p[1]).log()
    torch.testing.assert_close(loss_cls, (expected / 5).view_as(loss_cls))


def test_boxes_of_dropped_categories_are_no_targets():
    model = build(tiny_metr(num_categories=1)).train()
    images, samples = batch(('a',))
    samples[0].gt_instances.labels = torch.tensor([0, 1, 1])
    encoder_inputs, _ = model.pre_transformer(model.extract_feat(images), samples)
    encoded = model.forward_encoder(**encoder_inputs)
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        _, head_inputs = model.pre_decoder(**encoded, batch_data_samples=samples)
        (asked,) = head_inputs['groups'].unique().tolist()
        assert head_inputs['targets'][0].labels.tolist() == [asked] * (asked + 1)
        seen.add(asked)
    assert seen == {0, 1} and len(samples[0].gt_instances) == 3


def test_hard_negatives_do_not_teach_the_extraction():
    """The detector's losses reach the CEM through no path."""
    model = build(tiny_metr())
    found = losses(model, *batch())
    sum(v for k, v in found.items() if 'loss' in k and k != 'loss_cem').backward()
    assert all(p.grad is None for p in model.cem.parameters())


def test_double_precision():
    model = build(tiny_metr()).double()
    images, samples = batch()
    found = losses(model, images.double(), samples)
    single = losses(build(tiny_metr()), images, samples)
    for name, value in found.items():
        if 'loss' in name:
            assert value.dtype == torch.float64, name
        if 'loss' in name and 'dn' not in name:  # noise is drawn anew
            assert value.item() == pytest.approx(single[name].item(), rel=1e-3), name
    (result, _) = predict(model, images.double(), samples)
    assert result.pred_instances.scores.dtype == torch.float64


def test_bfloat16():
    model = build(tiny_metr(group_self_attn=True))
    images, samples = batch()
    with torch.autocast('cpu', torch.bfloat16):
        found = losses(model, images, samples)
        total(found).backward()
        results = predict(model, images, samples)
    assert total(found).isfinite() and results[0].pred_instances.scores.isfinite().all()


def test_group_self_attention_separates_categories():
    """What one category's queries see does not change with another's."""
    model = build(tiny_metr(group_self_attn=True, queries=4, num_categories=2)).eval()
    groups = torch.tensor([[1, 1, 0, 0], [2, 2, 2, 1]])
    mask = model._group_mask(groups, 4, None)
    assert mask.shape == (16, 4, 4)
    for i in range(2):
        assert torch.equal(mask[8 * i + 3], groups[i][:, None] != groups[i][None])
    dn = torch.zeros(6, 6, dtype=torch.bool)
    dn[2:, :2] = True
    both = model._group_mask(groups, 6, dn)
    assert torch.equal(both[0, :2], dn[:2]) and torch.equal(both[0, 2:, 2:], mask[0])
    assert both[0, 2:, :2].all()


# 7. Predictions


def test_predictions_stay_within_the_label_space():
    model, (images, samples) = build(tiny_metr(num_categories=12)), batch(('a', 'b'))
    results = predict(model, images, samples)
    for result, space in zip(results, ('a', 'b')):
        found, names = result.pred_instances, SPACES[space]
        assert set(found.labels.tolist()) <= set(range(len(names)))
        assert found.label_names == [names[label] for label in found.labels.tolist()]
        assert result.pred_categories.score.shape == (len(names),)
        assert (found.scores.diff() <= 0).all() and len(found) == 12
        assert (found.bboxes >= 0).all() and (found.bboxes[:, 2] <= 96).all()


def test_label_of_a_query_is_its_category():
    model, (images, samples) = build(tiny_metr()).eval(), batch(('a', 'b'))
    with torch.no_grad():
        inputs = model.forward_transformer(model.extract_feat(images), samples)
        scores, boxes = model.bbox_head(inputs['hidden_states'], inputs['references'])
    for i, result in enumerate(predict(model, images, samples)):
        best = scores[-1, i, :, 0].sigmoid().sort(descending=True)
        torch.testing.assert_close(result.pred_instances.scores, best.values)
        assert torch.equal(result.pred_instances.labels, inputs['groups'][i][best.indices])


def test_cem_power():
    model, (images, samples) = build(tiny_metr()), batch(('a',))
    plain = predict(model, images, samples)[0]
    model.bbox_head.test_cfg = dict(max_per_img=40, cem_power=0.5)
    weighted = predict(model, images, samples)[0]
    score = plain.pred_categories.score[plain.pred_instances.labels].sqrt()
    expected = (plain.pred_instances.scores * score).sort(descending=True).values
    torch.testing.assert_close(weighted.pred_instances.scores, expected)


def test_test_label_space_by_cfg_options():
    cfg = Config(dict(model=tiny_metr(label_spaces=dict(SPACES, c=SHAPES[:4]))))
    images, samples = batch(('a', 'b'))
    found = {}
    for space in ('a', 'c', ['horse', 'cow']):
        cfg.merge_from_dict({'model.test_label_space': space})
        model = build(cfg.model)
        found[str(space)] = predict(model, images, samples)
        keys = model.state_dict().keys()
        assert not any('table' in k for k in keys)
    for one, other in zip(found['a'], found['c']):
        assert torch.equal(one.pred_instances.bboxes, other.pred_instances.bboxes)
        assert torch.equal(one.pred_instances.labels, other.pred_instances.labels)
    new = found["['horse', 'cow']"][1].pred_instances
    assert set(new.label_names) == {'horse', 'cow'} and new.labels.max() == 1
    model.load_state_dict(build(tiny_metr()).state_dict())  # other names, same weights
    # Training images are asked about their own label space all the same.
    assert total(losses(model, images, samples)).isfinite()


# 8. Transfer


def test_export_loads_into_stock_dino(tool, tmp_path):
    metr = build(tiny_metr(width=256))
    torch.save(dict(state_dict=metr.state_dict(), meta=dict()), tmp_path / 'metr.pth')
    export = tool('metr_export.py').main
    assert export([str(tmp_path / 'metr.pth'), str(tmp_path / 'dino.pth')]) == 0
    state = torch.load(tmp_path / 'dino.pth', weights_only=True)['state_dict']
    stock = tiny_dino(width=256)
    stock['type'] = 'DINO'
    dino = build(stock, seed=1)
    assert type(dino).__module__.startswith('mmdet.')
    missing, unexpected = dino.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(
        k.startswith(('bbox_head.cls_branches.', 'dn_query_generator.label_embedding'))
        for k in missing
    )
    for name, value in dino.state_dict().items():
        assert name in missing or torch.equal(value, metr.state_dict()[name]), name
    assert total(losses(dino, *batch(('a', 'a')))).isfinite()


def test_export_loads_into_stock_deformable_detr(tool, tmp_path):
    metr = build(tiny_metr())
    state = stock_weights(metr.state_dict(), 'deformable-detr')
    stock = tiny_dino()
    del stock['dn_cfg']
    stock.update(type='DeformableDETR')
    stock['bbox_head'].update(type='DeformableDETRHead', num_classes=3)
    detector = build(stock, seed=1)
    missing, unexpected = detector.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(k.startswith(('bbox_head.cls_branches.', 'pos_trans_')) for k in missing)
    with pytest.raises(ValueError, match='target'):
        stock_weights(metr.state_dict(), 'detr')
    with pytest.raises(ValueError, match='METR'):
        stock_weights(detector.state_dict())
    assert tool('metr_export.py').main([str(tmp_path / 'no.pth'), str(tmp_path / 'x.pth')]) == 1


# Embeddings


def test_embeddings_need_no_file():
    one, again = embed_names(['Cat', 'dog'], 'hash'), embed_names(['cat', 'dog'], 'hash')
    assert torch.equal(one, again) and one.shape == (2, 512)
    torch.testing.assert_close(one.norm(dim=1), torch.ones(2))
    assert abs(one[0] @ one[1]) < 0.2
    seed = np.frombuffer(__import__('hashlib').sha256(b'dog').digest(), '<u4')
    drawn = np.random.RandomState(seed).standard_normal(512)
    np.testing.assert_allclose(one[1], drawn / np.linalg.norm(drawn), rtol=1e-5)
    bus, school_bus, cat = embed_names(['bus', 'school bus', 'cat'])
    assert bus @ school_bus > 0.3 > abs(bus @ cat)
    assert hashed_characters(['a'], 8).shape == (1, 8)
    with pytest.raises(ValueError, match='no source'):
        embed_names(['a'], 'word2vec')


def test_embeddings_from_a_file(tool, tmp_path):
    make, path = tool('make_category_embeddings.py').main, tmp_path / 'names.npz'
    assert (
        make([str(path), '--source', 'hash', '--dims', '16', '--names', 'circle', 'cat', 'dog'])
        == 0
    )
    vectors = embed_names(['dog', 'circle'], 'file', path=str(path))
    torch.testing.assert_close(vectors, embed_names(['dog', 'circle'], 'hash', dims=16))
    coco = tmp_path / 'coco.npz'
    assert make([str(coco), '--source', 'characters', '--label-spaces', 'mmdet.CocoDataset']) == 0
    assert len(embed_names(CocoDataset.METAINFO['classes'], 'file', path=str(coco))) == 80
    model = tiny_metr(embeddings=dict(source='file', path=str(path)))
    with pytest.raises(ValueError, match=r'no embedding of: square, star, triangle \(3 of 6'):
        build(model)
    with pytest.raises(ValueError, match='near .dogs. it has dog'):
        embed_names(['dogs'], 'file', path=str(path))
    with pytest.raises(FileNotFoundError, match='make_category_embeddings'):
        embed_names(['dog'], 'file', path=str(tmp_path / 'no.npz'))
    np.savez(tmp_path / 'other.npz', x=1)
    for name in ('other.npz', 'text.npz'):
        (tmp_path / 'text.npz').write_text('no archive')
        with pytest.raises(ValueError, match='no file of category embeddings'):
            embed_names(['dog'], 'file', path=str(tmp_path / name))
    for bad in (
        ['--source', 'hash'],
        ['--names', 'a'],
        ['--source', 'hash', '--path', 'x', '--names', 'a'],
    ):
        with pytest.raises(SystemExit):
            make([str(path), *bad])
    assert make([str(path), '--path', str(tmp_path / 'nowhere'), '--names', 'a']) == 1
    assert make([str(path), '--source', 'hash', '--label-spaces', 'mmdet.NoDataset']) == 1


def bert(folder: Path) -> str:
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir()
    words = '[PAD] [UNK] [CLS] [SEP] [MASK] a photo of . cat dog'.split()
    (folder / 'vocab.txt').write_text('\n'.join(words))
    BertTokenizer(folder / 'vocab.txt').save_pretrained(folder)
    BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
        )
    ).save_pretrained(folder)
    return str(folder)


def clip_tokenizer(folder: Path) -> int:
    from transformers import CLIPTokenizer

    folder.mkdir()
    letters = 'abcdefghijklmnopqrstuvwxyz.'
    words = [*letters, *(c + '</w>' for c in letters), '<|startoftext|>', '<|endoftext|>']
    (folder / 'vocab.json').write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / 'merges.txt').write_text('#version: 0.2\n')
    tokenizer = CLIPTokenizer(str(folder / 'vocab.json'), str(folder / 'merges.txt'))
    tokenizer.save_pretrained(folder)
    return len(words)


def clip(folder: Path) -> str:
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    size = clip_tokenizer(folder)
    small = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    text = CLIPTextConfig(vocab_size=size, eos_token_id=size - 1, **small)
    vision = CLIPVisionConfig(image_size=8, patch_size=4, **small)
    config = CLIPConfig.from_text_vision_configs(text, vision, projection_dim=6)
    CLIPModel(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize('make,dims', [(bert, 8), (clip, 6)])
def test_embeddings_from_transformers(make, dims, tmp_path, tool):
    pytest.importorskip('transformers')
    torch.manual_seed(0)
    path = make(tmp_path / 'encoder')
    vectors = embed_names(['cat', 'dog'], 'transformers', path=path)
    assert vectors.shape == (2, dims) and not torch.allclose(*vectors)
    # A name does not depend on those beside it.
    torch.testing.assert_close(
        embed_names(['dog'], 'transformers', path=path)[0], vectors[1], rtol=1e-4, atol=1e-5
    )
    plain = embed_names(['dog'], 'transformers', path=path, template='{}')
    assert not torch.allclose(plain[0], vectors[1])
    out = tmp_path / 'names.npz'
    command = [str(out), '--path', path, '--names', 'cat', 'dog']
    assert tool('make_category_embeddings.py').main(command) == 0
    torch.testing.assert_close(embed_names(['cat', 'dog'], 'file', path=str(out)), vectors)
    with pytest.raises(FileNotFoundError, match='language model'):
        embed_names(['cat'], 'transformers', path=str(tmp_path / 'none'))


def test_embeddings_from_mmpretrain(tmp_path):
    pytest.importorskip('mmpretrain')
    pytest.importorskip('transformers')
    size = clip_tokenizer(tmp_path / 'tokenizer')
    config = tmp_path / 'clip.py'
    config.write_text(f"""
model = dict(
    type='CLIPZeroShot',
    vision_backbone=dict(type='VisionTransformer', arch=dict(embed_dims=8, num_layers=1, num_heads=2,
        feedforward_channels=8), img_size=16, patch_size=8),
    projection=dict(type='CLIPProjection', in_channels=8, out_channels=6),
    text_backbone=dict(type='CLIPTransformer', width=8, layers=1, heads=2),
    tokenizer=dict(type='AutoTokenizer', name_or_path='openai/clip-vit-base-patch16', use_fast=False),
    vocab_size={size}, transformer_width=8, proj_dim=6, context_length=30)
""")
    torch.manual_seed(0)
    options = dict(path=str(config), tokenizer=str(tmp_path / 'tokenizer'))
    vectors = embed_names(['cat', 'dog'], 'mmpretrain', **options)
    assert vectors.shape == (2, 6) and not torch.allclose(*vectors)
    from mmpretrain.registry import MODELS as PRETRAIN

    cfg = Config.fromfile(config).model
    cfg.tokenizer.name_or_path = options['tokenizer']
    torch.save(PRETRAIN.build(cfg).state_dict(), tmp_path / 'clip.pth')
    options.update(checkpoint=str(tmp_path / 'clip.pth'))
    other = embed_names(['cat', 'dog'], 'mmpretrain', **options)
    torch.testing.assert_close(other, embed_names(['cat', 'dog'], 'mmpretrain', **options))
    assert not torch.allclose(other, vectors)


def test_label_spaces_are_checked():
    assert len(resolve_label_space('coco', 'mmdet.CocoDataset')) == 80
    with pytest.raises(ValueError, match='CocoMetric|expected a dataset class'):
        resolve_label_space('x', 'mmdet.MultiImageMixDataset')
    for names in ((), ('a', ''), ('a', 3)):
        with pytest.raises(ValueError, match='must hold category names'):
            resolve_label_space('x', names)
    with pytest.raises(ValueError, match='names b more than once'):
        resolve_label_space('x', ('a', 'b', 'b'))
    with pytest.raises(ValueError, match='num_categories'):
        build(tiny_metr(num_categories=13))
    with pytest.raises(ValueError, match='test_label_space'):
        build(tiny_metr(test_label_space='c'))
    with pytest.raises(ValueError, match='names no label space'):
        build(tiny_metr(label_spaces={}))
    stock = tiny_dino()
    with pytest.raises(
        ValueError, match='bbox_head is a DINOHead, expected one with a single logit'
    ):
        build(tiny_metr(bbox_head=stock['bbox_head']))
    with pytest.raises(ValueError, match='HungarianAssigner, which knows no categories'):
        build(tiny_metr(train_cfg=stock['train_cfg']))
    build(tiny_metr(train_cfg=None))  # a detector that is only tested
    softmax = tiny_metr()
    softmax['bbox_head']['loss_cls'] = dict(type='CrossEntropyLoss')
    with pytest.raises(ValueError, match='use_sigmoid'):
        build(softmax)


def test_names_that_no_query_can_tell_apart_are_refused():
    with pytest.raises(
        ValueError, match=r"label_spaces\['b'\]: 'dog', 'Dog' have the same embedding"
    ):
        LabelSpaces(dict(a=('dog', 'cat'), b=('cat', 'dog', 'Dog')), dict(source='hash'))
    assert len(LabelSpaces(dict(a=('dog',), b=('Dog',)), dict(source='hash')).table) == 2


def test_pictures_name_the_categories_that_are_asked_about():
    """mmdet hands on the classes of the training set, the first of several."""
    coco = dict(classes=('person', 'car'), palette='random')
    for options, classes in (
        (dict(), coco['classes']),  # each image its own
        (dict(test_label_space='b'), SPACES['b']),
        (dict(test_label_space=['hat', 'glove']), ('hat', 'glove')),
        (dict(label_spaces=dict(shapes=SHAPES)), SHAPES),
    ):
        model = build(tiny_metr(**options))
        model.dataset_meta = dict(coco)
        model.dataset_meta['palette'] = 'coco'  # as mmdet does
        assert model.dataset_meta == dict(classes=classes, palette='coco')


def test_images_must_say_their_label_space():
    model, (images, samples) = build(tiny_metr()), batch()
    samples[0].gt_instances.labels[:] = 4
    with pytest.raises(ValueError, match="label space 'a' has 4"):
        losses(model, images, samples)
    samples[1].set_metainfo(dict(label_space='z'))
    with pytest.raises(ValueError, match="1.jpg has the label space 'z', expected one of a, b"):
        losses(model, images, samples)
    lone = build(tiny_metr(label_spaces=dict(shapes=SHAPES)))
    images, samples = drawn_batch(2, size=(64, 96))
    assert total(losses(lone, images, samples)).isfinite()


# Data sets and their evaluation


def test_attach_label_space():
    assert AttachLabelSpace('a')(dict(x=1)) == dict(x=1, label_space='a')
    assert repr(AttachLabelSpace('a')) == "AttachLabelSpace(name='a')"
    for bad in ('', None):
        with pytest.raises((TypeError, ValueError), match='name must be'):
            AttachLabelSpace(bad)


class Several:
    """As much of a ConcatDataset as the sampler needs."""

    def __init__(self, *sizes):
        self.datasets = [range(size) for size in sizes]

    def __len__(self):
        return sum(map(len, self.datasets))


@pytest.mark.parametrize('power,share', [(0.5, 0.25), (1.0, 0.1), (0.0, 0.5)])
def test_sampler_draws_by_a_power_of_the_size(power, share):
    sampler = SizePowerSampler(Several(400, 3600), power, seed=0)
    drawn = np.array(list(sampler))
    assert len(drawn) == len(sampler) == 4000
    assert (drawn < 400).mean() == pytest.approx(share, abs=0.03)
    sampler.set_epoch(1)
    assert not np.array_equal(drawn, np.array(list(sampler)))
    with pytest.raises(ValueError, match='ConcatDataset'):
        SizePowerSampler(range(3))
    with pytest.raises(ValueError, match='must have images'):
        SizePowerSampler(Several(0, 3))


class Count:
    """As much of a metric as the evaluator needs."""

    def __init__(self, prefix='count'):
        self.prefix, self.results, self.seen = prefix, [], None

    def process(self, data_batch, data_samples):
        assert len(data_samples) == 1 and data_batch == dict(inputs=[data_samples[0]['img_id']])
        self.results.append(data_samples[0]['img_id'])

    def compute_metrics(self, results):
        self.seen = results
        return dict(images=len(results))


def samples_of(*spaces):
    return [DetDataSample(metainfo=dict(img_id=i, label_space=s)) for i, s in enumerate(spaces)]


def test_evaluator_hands_images_to_their_own_metrics():
    a, b, b2 = Count(), Count(), Count('more')
    evaluator = LabelSpaceEvaluator([[a], [b, b2]], ['a', 'b'])
    evaluator.dataset_meta = [dict(classes=('x',)), dict(classes=('y', 'z'))]
    assert a.dataset_meta['classes'] == ('x',) and b2.dataset_meta['classes'] == ('y', 'z')
    for _ in range(2):  # the last batch of a distributed run repeats images
        evaluator.process(samples_of('a', 'b', 'a', 'b', 'b'), dict(inputs=list(range(5))))
    results = evaluator.evaluate(5)
    assert results == {'a/count/images': 2, 'b/count/images': 3, 'b/more/images': 3}
    assert a.seen == [0, 2] and b.seen == b2.seen == [1, 3, 4]
    with pytest.raises(ValueError, match="no validation image has the label space 'a'"):
        evaluator.evaluate(5)


def test_evaluator_refuses_what_it_cannot_tell_apart():
    metric = dict(type='mmdet.CocoMetric')
    for bad in ([], [metric]):
        with pytest.raises(ValueError, match='one entry for each of the label spaces'):
            LabelSpaceEvaluator(bad, ['a', 'b'])
    with pytest.raises(TypeError, match='metrics must be a sequence'):
        LabelSpaceEvaluator(dict(a=metric, b=metric), ['a', 'b'])
    with pytest.raises(ValueError, match='names b more than once'):
        LabelSpaceEvaluator([metric] * 3, ['a', 'b', 'b'])
    evaluator = LabelSpaceEvaluator([[Count(), Count()]], ['a'])
    with pytest.raises(ValueError, match='has 2 data sets, and metrics are given for 1'):
        evaluator.dataset_meta = [dict(), dict()]
    evaluator.process(samples_of('a'), dict(inputs=[0]))
    with pytest.raises(ValueError, match='two metrics of .a. give a/count/images'):
        evaluator.evaluate(1)
    with pytest.raises(ValueError, match='label space None'):
        evaluator.process([DetDataSample(metainfo=dict(img_id=0))])


def test_category_extraction_metric():
    generator = np.random.RandomState(0)
    scores, present = generator.rand(7, 5).astype(np.float32), generator.rand(7, 5) < 0.4
    present[:, 4] = False
    metric = CategoryExtractionMetric(num_categories=2)
    for s, p in zip(scores, present):
        sample = DetDataSample(pred_categories=LabelData(score=torch.from_numpy(s)))
        labels = torch.from_numpy(np.flatnonzero(p)).repeat(2)
        sample.gt_instances = InstanceData(labels=labels)
        metric.process(None, [sample.to_dict()])
    precisions = []
    for k in range(4):
        hits, found = 0, []
        for rank, i in enumerate(sorted(range(7), key=lambda i: -scores[i, k]), 1):
            if present[i, k]:
                hits += 1
                found.append(hits / rank)
        precisions.append(sum(found) / len(found))
    top = sum(present[i, k] for i in range(7) for k in np.argsort(-scores[i])[:2])
    values = metric.compute_metrics(metric.results)
    assert values['mAP'] == pytest.approx(np.mean(precisions))
    assert values['recall@2'] == pytest.approx(top / present.sum())
    sample.pred_categories.score = sample.pred_categories.score[:1]
    sample.gt_instances = InstanceData(labels=torch.tensor([1]))
    with pytest.raises(ValueError, match='label 1 was asked about 1 categories'):
        metric.process(None, [sample.to_dict()])
    assert np.isnan(metric.compute_metrics([(scores[0], present[0] & False)])['mAP'])


# Whole runs


def small_pictures(node):
    """The config with 96x64 images."""
    if isinstance(node, dict):
        node = {k: small_pictures(v) for k, v in node.items()}
        kind = str(node.get('type')).rpartition('.')[2]
        if kind == 'Resize':
            node['scale'] = (96, 64)
        elif kind == 'RandomChoiceResize':
            node['scales'] = [(64, 96)]
        elif kind == 'RandomCrop':
            node['crop_size'] = (48, 60)
        return node
    return [small_pictures(v) for v in node] if isinstance(node, (list, tuple)) else node


def on_shapes(node, root, split, classes=SHAPES):
    """The config of a data set, or of several, with the drawn shapes in place of the images."""
    node = dict(node)
    if 'datasets' in node:
        node['datasets'] = [on_shapes(d, root, split, classes) for d in node['datasets']]
        return node
    drawn = coco_dataset(root, split, train=split == 'train')
    drawn['metainfo'] = dict(classes=classes)
    return dict(drawn, pipeline=node['pipeline'], indices=3)


def short(cfg, root, work_dir, **train_cfg):
    """Two iterations and a validation of a shipped config, on drawn shapes and a small detector."""
    model = cfg.model.to_dict()
    model.update(num_queries=20, test_cfg=dict(max_per_img=20))
    model['backbone'] = dict(_small()['backbone'], base_channels=8)
    levels = model.get('num_feature_levels', 4)
    model['neck'] = dict(model['neck'], in_channels=[16, 32, 64], num_outs=levels)
    for part in ('encoder', 'decoder'):
        model[part]['num_layers'] = 1
    if 'label_spaces' in model:
        model['label_spaces'] = dict.fromkeys(model['label_spaces'], SHAPES)
        model['embeddings'] = dict(source='hash', dims=16)
        if model.get('test_label_space'):
            model['test_label_space'] = SHAPES
    model['bbox_head']['num_classes'] = len(SHAPES)
    annotations = str(root / 'annotations/instances_val.json')

    def evaluator(node):
        if isinstance(node, (list, tuple)):
            return [evaluator(v) for v in node]
        if 'metrics' in node:
            return dict(node, metrics=evaluator(node['metrics']))
        return dict(node, ann_file=annotations) if 'ann_file' in node else dict(node)

    loaders = {}
    for split in ('train', 'val'):
        loader = small_pictures(cfg[f'{split}_dataloader'].to_dict())
        loader['dataset'] = on_shapes(loader['dataset'], root, split)
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loaders[f'{split}_dataloader'] = loader
    return Config(
        dict(
            default_scope='mmdet',
            model=model,
            work_dir=str(work_dir),
            **loaders,
            val_evaluator=evaluator(cfg.val_evaluator),
            val_cfg=dict(type='ValLoop'),
            train_cfg=train_cfg or dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2),
            optim_wrapper=cfg.optim_wrapper,
            custom_hooks=cfg.get('custom_hooks', []),
            log_level='WARNING',
            default_hooks=dict(logger=dict(type='LoggerHook', interval=1), checkpoint=None),
            randomness=dict(seed=0),
        )
    )


@pytest.mark.parametrize('name', CONFIGS)
def test_shipped_config_trains_and_validates(name, shapes_root, tmp_path):
    runner = train(short(Config.fromfile(ROOT / 'configs' / 'metr' / name), shapes_root, tmp_path))
    scalars = runner.message_hub.log_scalars
    assert all(np.isfinite(scalars['train/loss'].data[0])) and runner.iter == 2
    spaces = runner.val_evaluator.spaces if hasattr(runner.val_evaluator, 'spaces') else ['']
    for space in spaces:
        assert f'val/{space}/coco/bbox_mAP'.replace('//', '/') in scalars
        if name.startswith('metr_') and space:
            assert f'val/{space}/cem/mAP' in scalars


def joint(root, work_dir, **changes):
    """The joint config of COCO-128 and BCCD, on drawn shapes."""
    cfg = Config.fromfile(ROOT / 'configs/metr/metr_dino-r18_coco128-bccd_demo.py')
    cfg = short(cfg, root, work_dir, type='EpochBasedTrainLoop', max_epochs=2, val_interval=2)
    cfg.model.update(label_spaces=dict(coco=SHAPES, bccd=SHAPES[:3]))
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.datasets[1].metainfo = dict(classes=SHAPES[:3])
    cfg.custom_hooks.append(dict(type='mmextra.SeedEachEpochHook'))
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    cfg.merge_from_dict(changes)
    return cfg


def test_resumed_run_equals_unbroken_one(shapes_root, tmp_path):
    unbroken = train(joint(shapes_root, tmp_path / 'whole'))
    train(joint(shapes_root, tmp_path / 'part', **{'train_cfg.max_epochs': 1}))
    cfg = joint(shapes_root, tmp_path / 'part')
    cfg.resume, cfg.load_from = True, str(tmp_path / 'part' / 'epoch_1.pth')
    resumed = train(cfg)
    assert resumed.iter == unbroken.iter == 6
    assert_equal_weights(weights(resumed.model), weights(unbroken.model))


def test_two_processes(shapes_root, tmp_path):
    """Without `find_unused_parameters`; results are those of one process, though an odd number of
    images makes the sampler repeat one."""
    cfg = joint(shapes_root, tmp_path)
    cfg.val_dataloader.dataset.datasets[0].indices = 4
    cfg.model.backbone.norm_eval = True  # else each process tests with statistics of its own
    cfg.dump(tmp_path / 'run.py')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2']
    command += [f'--master_port={port}', str(ROOT / 'tools/train.py'), str(tmp_path / 'run.py')]
    environment = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    done = subprocess.run(
        [*command, '--launcher', 'pytorch'],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-9000:]
    (scalars,) = tmp_path.glob('*/vis_data/scalars.json')
    two = json.loads(scalars.read_text().splitlines()[-1])
    cfg.load_from, cfg.train_cfg.max_epochs = str(tmp_path / 'epoch_2.pth'), 0
    from mmengine.runner import Runner

    cfg.experiment_name = 'one'
    cfg.update(test_dataloader=cfg.val_dataloader, test_evaluator=cfg.val_evaluator)
    cfg.test_cfg = dict(type='TestLoop')
    one = Runner.from_cfg(cfg).test()
    assert one.keys() <= two.keys() and len(one) == 16
    for name, value in one.items():
        assert two[name] == pytest.approx(value, nan_ok=True, abs=1e-3), name


@pytest.mark.parametrize(
    'change,message',
    [
        (lambda c: c.model.label_spaces.update(bccd=SHAPES[1:4]), 'other classes'),
        (
            lambda c: c.train_dataloader.dataset.datasets[1].pipeline[-2].update(name='cells'),
            'cells',
        ),
        (lambda c: c.train_dataloader.dataset.datasets[1].pipeline.pop(-2), 'label space None'),
    ],
)
def test_mixed_up_label_spaces_stop_the_run(change, message, shapes_root, tmp_path):
    cfg = joint(shapes_root, tmp_path)
    change(cfg)
    with pytest.raises(ValueError, match=message):
        train(cfg)


def test_check_of_another_model(shapes_root, tmp_path):
    cfg = joint(shapes_root, tmp_path)
    cfg.model = dict(tiny_dino(), bbox_head=dict(tiny_dino()['bbox_head'], num_classes=6))
    with pytest.raises(TypeError, match='goes with mmextra.METR, the model is AnyWidthDINO'):
        train(cfg)


def test_two_data_sets_with_one_prefix_stop_the_run(shapes_root, tmp_path):
    cfg = joint(shapes_root, tmp_path, **{'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1})
    part = copy.deepcopy(cfg.val_dataloader.dataset.datasets[1])
    cfg.val_dataloader.dataset.datasets.append(part)
    with pytest.raises(ValueError, match="evaluated under the prefix 'bccd'|has 3 data sets"):
        train(cfg)


def test_other_names_are_warned_of(shapes_root, tmp_path, monkeypatch):
    """And pictures of several data sets are drawn."""
    told = []
    monkeypatch.setattr('mmextra.det.metr.data.print_log', lambda text, *_, **__: told.append(text))
    cfg = joint(shapes_root, tmp_path, **{'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1})
    cfg.model.test_label_space = SHAPES[:3]
    cfg.val_evaluator.metrics = [several[0] for several in cfg.val_evaluator.metrics]
    cfg.default_hooks.visualization = dict(type='DetVisualizationHook', draw=True, interval=1)
    cfg.visualizer = dict(
        type='DetLocalVisualizer',
        vis_backends=[dict(type='LocalVisBackend')],
        save_dir=str(tmp_path),
    )
    train(cfg)
    assert len(told) == 1 and 'asked about circle, square, triangle (test_label_space)' in told[0]
    assert list(tmp_path.rglob('vis_image/*.png'))
    cfg.test_dataloader = cfg.val_dataloader
    cfg.model.test_label_space = ['hat', 'glove']
    (image,) = (shapes_root / 'val').glob('*0.jpg')
    detector = init_detector(cfg, palette='random', device='cpu')
    assert set(inference_detector(detector, str(image)).pred_instances.label_names) == {
        'hat',
        'glove',
    }


def test_test_time_augmentation(tool, shapes_root, tmp_path):
    """`--tta` on several data sets: each keeps its label space, and the check sees the model."""
    cfg = joint(shapes_root, tmp_path)
    torch.save(dict(state_dict=build(cfg.model).state_dict(), meta=dict()), tmp_path / 'model.pth')
    cfg.update(test_dataloader=cfg.val_dataloader, test_evaluator=cfg.val_evaluator)
    cfg.test_cfg = dict(type='TestLoop')
    cfg.experiment_name = 'tta'
    cfg.dump(tmp_path / 'config.py')
    tool('test.py').main(
        [str(tmp_path / 'config.py'), str(tmp_path / 'model.pth'), '--tta']
        + ['--out', str(tmp_path / 'metrics.json'), '--out-item', 'metrics']
    )
    found = json.loads((tmp_path / 'metrics.json').read_text())
    assert {'coco/coco/bbox_mAP', 'bccd/coco/bbox_mAP', 'bccd/cem/mAP'} <= found.keys()


def test_coco128_and_bccd_in_one_model(data_root, tmp_path, monkeypatch):
    """The shipped joint config on the real images, two iterations and two images of each set."""
    monkeypatch.setenv('MMEXTRA_DATA', str(data_root))
    cfg = Config.fromfile(ROOT / 'configs/metr/metr_dino-r18_coco128-bccd_demo.py')
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, batch_size=2)
        for part in loader.dataset.datasets:
            part.indices = 2
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
    cfg.param_scheduler, cfg.work_dir, cfg.log_level = [], str(tmp_path), 'WARNING'
    cfg.default_hooks.checkpoint = None
    runner = train(cfg)
    names = set(runner.message_hub.log_scalars)
    assert {'val/coco/coco/bbox_mAP', 'val/bccd/coco/bbox_mAP', 'val/bccd/cem/mAP'} <= names
    assert len(runner.model.label_spaces.names['coco']) == 80


def test_demo_tool(tool, tmp_path):
    """Data, table and verdict of the demonstration; the runs take minutes."""
    demo = tool('metr_demo.py')
    demo.write_data(tmp_path, train=4, test=2)
    for name, kinds in (('a', {1, 2}), ('b', {2, 3}), ('union', {1, 2, 3}), ('test', {1, 2, 3})):
        content = json.loads((tmp_path / f'{name}.json').read_text())
        assert {a['category_id'] for a in content['annotations']} == kinds
    union = json.loads((tmp_path / 'union.json').read_text())
    full = json.loads((tmp_path / 'full.json').read_text())
    assert len(union['annotations']) < len(full['annotations'])
    for image in full['images']:
        kinds = {a['category_id'] for a in full['annotations'] if a['image_id'] == image['id']}
        assert kinds == {1, 2, 3}
    test = json.loads((tmp_path / 'test.json').read_text())['annotations']
    (tmp_path / 'predictions.bbox.json').write_text(json.dumps([dict(a, score=0.9) for a in test]))
    found = demo.average_precisions(tmp_path, tmp_path)
    assert found == pytest.approx(dict(square=100, circle=100, triangle=100))
    rows = {run: dict(found, seconds=0.1) for run in ('metr', 'merged', 'oracle', 'separate')}
    rows['metr']['cem/mAP'] = 1.0
    assert '| metr | 100.0 | 100.0 | 100.0 | 100.0 | 0.100 |' in demo.table([rows])
    assert '100 % of the oracle' in demo.verdict([rows])
