"""O2DETR: encoder, head, cascaded head and detector, held against slow loops and the stock detector.

The golden files of the paper are about its oriented boxes: `oriented_boxes` is tested in
tests/structures/test_oriented_boxes.py, `dota_map` in test_oriented_data.py.
"""

import copy
import math

import pytest
import torch
from mmdet.models.detectors import DeformableDETR
from mmdet.models.layers import DeformableDetrTransformerEncoder
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.structures import InstanceData
from torch import nn
from training import assert_equal_weights

from mmextra.det.o2detr import (
    DepthwiseSeparableConv,
    O2DETRDecoder,
    O2DETREncoder,
    O2DETREncoderLayer,
    O2DETRHead,
    O2DETRRefineHead,
    OrientedRoIExtractor,
)
from mmextra.det.o2detr.head import top_detections
from mmextra.ops.rotated import oriented_corners, regularize_boxes
from mmextra.registry import MODELS
from mmextra.structures.oriented_boxes import OrientedBoxes

C, QUERIES, CLASSES = 16, 6, 3
COSTS = [
    dict(type='mmdet.FocalLossCost', weight=2.0),
    dict(type='mmextra.OrientedL1Cost', weight=5.0),
    dict(type='mmextra.OrientedIoUCost', weight=2.0),
]
ATTENTION = dict(embed_dims=C, num_heads=2, dropout=0.0, batch_first=True)
FFN = dict(embed_dims=C, feedforward_channels=32)
DECODER = dict(
    num_layers=2,
    return_intermediate=True,
    layer_cfg=dict(self_attn_cfg=ATTENTION, cross_attn_cfg=ATTENTION, ffn_cfg=FFN),
    post_norm_cfg=None,
)
HEAD = dict(
    num_classes=CLASSES,
    embed_dims=C,
    sync_cls_avg_factor=True,
    loss_cls=dict(type='mmdet.FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
    loss_bbox=dict(type='mmdet.L1Loss', loss_weight=5.0),
)
REFINE = dict(num_classes=CLASSES, embed_dims=C, fc_channels=24, roi_size=3)
TRAIN_CFG = dict(assigner=dict(type='mmdet.HungarianAssigner', match_costs=COSTS))
PARTS = dict(
    num_queries=QUERIES,
    num_feature_levels=4,
    data_preprocessor=dict(type='mmdet.DetDataPreprocessor'),
    backbone=dict(
        type='mmdet.ResNet',
        depth=18,
        base_channels=4,
        out_indices=(1, 2, 3),
        norm_cfg=dict(type='BN'),
        norm_eval=True,
    ),
    neck=dict(
        type='mmdet.ChannelMapper',
        in_channels=[8, 16, 32],
        kernel_size=1,
        out_channels=C,
        act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=4),
        num_outs=4,
    ),
    decoder=DECODER,
    positional_encoding=dict(num_feats=C // 2, normalize=True, offset=-0.5),
)
LAYER = dict(embed_dims=C, feedforward_channels=32, dropout=0.0)
TINY = dict(
    O2DETREncoder=dict(num_layers=2, layer_cfg=LAYER),
    O2DETRHead=dict(HEAD, train_cfg=TRAIN_CFG),
    O2DETRRefineHead=REFINE,
    O2DETR=dict(
        PARTS,
        encoder=dict(num_layers=2, layer_cfg=LAYER),
        bbox_head=dict(HEAD, type='mmextra.O2DETRHead'),
        train_cfg=TRAIN_CFG,
        test_cfg=dict(max_per_img=QUERIES),
    ),
)
STOCK_ENCODER = dict(
    type='DeformableDetrTransformerEncoder',
    num_layers=2,
    layer_cfg=dict(self_attn_cfg=ATTENTION, ffn_cfg=FFN),
)


def config(head=None, refine=False, **overrides):
    """The config of the small detector, with other arguments of its head or its own."""
    cfg = dict(type='mmextra.O2DETR', **copy.deepcopy(TINY['O2DETR']))
    cfg['bbox_head'].update(head or {})
    if refine:
        cfg['refine_head'] = dict(REFINE, type='mmextra.O2DETRRefineHead')
    cfg.update(copy.deepcopy(overrides))
    return ConfigDict(cfg)


def detector(**options):
    torch.manual_seed(0)
    model = MODELS.build(config(**options))
    model.init_weights()
    return model


def head(**options):
    torch.manual_seed(0)
    built = O2DETRHead(**copy.deepcopy(dict(TINY['O2DETRHead'], num_pred_layer=2)), **options)
    built.init_weights()
    return built


def meta(height=64, width=96, padded=None, scale=(1.0, 1.0)):
    padded = padded or (height, width)
    return dict(
        img_shape=(height, width),
        pad_shape=padded,
        batch_input_shape=padded,
        scale_factor=scale,
    )


def truth(count, seed=0, size=(96, 64)):
    """Random oriented objects inside an image of (width, height)."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(count, 5, generator=generator)
    centre = u[:, :2] * torch.tensor(size)
    sides = 8 + u[:, 2:4] * 20
    boxes = torch.cat([centre, sides, (u[:, 4:] - 0.5) * 6], 1)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return InstanceData(bboxes=boxes, labels=labels)


def batch(*counts, sizes=None):
    """Images padded to the largest, with the given numbers of objects."""
    sizes = sizes or [(64, 96)] * len(counts)
    padded = tuple(max(s[i] for s in sizes) for i in (0, 1))
    samples = []
    for i, (count, size) in enumerate(zip(counts, sizes)):
        sample = DetDataSample(metainfo=meta(*size, padded=padded))
        sample.gt_instances = truth(count, seed=i, size=size[::-1])
        samples.append(sample)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(len(counts), 3, *padded, generator=generator), samples


# Encoder

SHAPES = [(6, 5), (3, 3), (2, 2)]


def tokens(shapes=SHAPES, count=2, channels=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    total = sum(h * w for h, w in shapes)
    return torch.randn(count, total, channels, generator=generator, dtype=dtype)


def padding_mask(shapes=SHAPES, valid=((4, 4), (2, 2), (1, 1))):
    """True outside the upper left (height, width) cells of each level; the first image is whole."""
    rows = []
    for (h, w), (vh, vw) in zip(shapes, valid):
        mask = torch.ones(h, w, dtype=torch.bool)
        mask[:vh, :vw] = False
        rows.append(mask.flatten())
    mask = torch.cat(rows)
    return torch.stack([torch.zeros_like(mask), mask])


def slow_mix(layer, x, mask, shapes):
    """The layer's convolution with loops over levels, positions and taps."""
    x, out, start = x.masked_fill(mask[..., None], 0), [], 0
    levels, hidden = [], []
    for level, (h, w) in enumerate(shapes):
        conv = layer.convs[0 if layer.share_levels else level]
        grid = x[:, start : start + h * w].unflatten(1, (h, w))
        ours = torch.zeros_like(grid) + conv.depthwise.bias
        for i in range(h):
            for j in range(w):
                for di in (-1, 0, 1):
                    for dj in (-1, 0, 1):
                        if 0 <= i + di < h and 0 <= j + dj < w:
                            weight = conv.depthwise.weight[:, 0, di + 1, dj + 1]
                            ours[:, i, j] = ours[:, i, j] + weight * grid[:, i + di, j + dj]
        keep = ~mask[:, start : start + h * w].unflatten(1, (h, w))
        hidden.append(ours * keep[..., None] if layer.cross_scale else ours)
        levels.append(conv)
        start += h * w
    for level, (h, w) in enumerate(shapes):
        mixed = hidden[level].clone()
        if layer.cross_scale:
            for i in range(h):
                for j in range(w):
                    if level + 1 < len(shapes):
                        mixed[:, i, j] += hidden[level + 1][:, i // 2, j // 2]
                    if level:
                        finer = hidden[level - 1][:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                        mixed[:, i, j] += finer.sum((1, 2)) / 4
        out.append((mixed @ levels[level].pointwise.weight.T).flatten(1, 2))
        out[-1] = out[-1] + levels[level].pointwise.bias
    return torch.cat(out, 1)


@pytest.mark.parametrize('share_levels', [True, False])
@pytest.mark.parametrize('cross_scale', [None, 'sum'])
@pytest.mark.parametrize('with_pos', [True, False])
def test_layer_equals_loops(share_levels, cross_scale, with_pos):
    layer = O2DETREncoderLayer(4, 8, 0.0, share_levels, len(SHAPES), cross_scale, with_pos).double()
    x, pos, mask = tokens(), tokens(seed=1), padding_mask()
    mixed = slow_mix(layer, x + pos if with_pos else x, mask, SHAPES)
    y = layer.norms[0](x + mixed)
    first, second = layer.ffn.layers[0][0], layer.ffn.layers[1]
    expected = layer.norms[1](y + second(first(y).relu()))
    torch.testing.assert_close(layer(x, pos, mask, SHAPES), expected)


def test_parameters_are_those_of_the_card():
    with torch.device('meta'):
        encoder = O2DETREncoder(6, dict(embed_dims=256, feedforward_channels=1024))
        stock = DeformableDetrTransformerEncoder(
            1,
            dict(
                self_attn_cfg=dict(embed_dims=256),
                ffn_cfg=dict(embed_dims=256, feedforward_channels=1024),
            ),
        )
        conv = DepthwiseSeparableConv(256)

    def count(m):
        return sum(p.numel() for p in m.parameters())

    assert count(conv) == 68_352
    assert count(encoder.layers[0]) == 594_944
    assert count(encoder) == 6 * 594_944 == 3_569_664
    assert count(stock) == 756_864


@pytest.mark.parametrize('cross_scale', [None, 'sum'])
def test_padding_does_not_matter(cross_scale):
    layers = dict(embed_dims=4, feedforward_channels=8, cross_scale=cross_scale, dropout=0.0)
    encoder = O2DETREncoder(3, layers).double()
    valid = [(5, 3), (3, 2), (2, 1)]
    outs = []
    for seed, shapes in enumerate(([(6, 4), (3, 2), (2, 1)], [(9, 8), (5, 4), (3, 2)])):
        x = tokens(shapes, seed=seed)
        mask = padding_mask(shapes, valid)
        x[1, mask[1]] *= 1e3
        content = tokens(valid, count=1, seed=7)[0]
        x[1, ~mask[1]] = content
        out = encoder(x, torch.zeros_like(x), mask[:, :], torch.tensor(shapes))
        outs.append(out[1, ~mask[1]])
    torch.testing.assert_close(*outs, rtol=0, atol=1e-12)


@pytest.mark.parametrize('cross_scale', [None, 'sum'])
def test_levels_mix_only_when_asked(cross_scale):
    layers = dict(embed_dims=4, feedforward_channels=8, cross_scale=cross_scale, dropout=0.0)
    encoder = O2DETREncoder(2, layers).double()
    x = tokens(count=1).requires_grad_()
    out = encoder(x, torch.zeros_like(x), None, torch.tensor(SHAPES))
    weights = tokens(count=1, seed=5)  # a plain sum of normalised values has no gradient
    (out * weights)[:, :30].sum().backward()
    others = x.grad[:, 30:]
    assert x.grad[:, :30].abs().max() > 0
    assert (
        (others.abs().max() > 0) if cross_scale else torch.equal(others, torch.zeros_like(others))
    )


def test_receptive_field_is_thirteen_cells():
    encoder = O2DETREncoder(6, dict(embed_dims=4, feedforward_channels=8, dropout=0.0)).double()
    shapes = [(17, 17)]
    x = tokens(shapes, count=1).requires_grad_()
    out = encoder(x, torch.zeros_like(x), None, torch.tensor(shapes))
    (out[0, 8 * 17 + 8] @ tokens([(1, 1)], 1, seed=3)[0, 0]).backward()
    seen = x.grad[0].abs().sum(-1).view(17, 17) > 0
    expected = torch.zeros(17, 17, dtype=torch.bool)
    expected[2:15, 2:15] = True
    assert torch.equal(seen, expected)


def test_recomputed_layers_give_the_same_gradients():
    results = []
    for num_cp in (-1, 2):
        torch.manual_seed(0)
        encoder = O2DETREncoder(3, dict(LAYER, embed_dims=4), num_cp=num_cp).double()
        x = tokens().requires_grad_()
        encoder(x, x, padding_mask(), torch.tensor(SHAPES)).square().sum().backward()
        results.append([x.grad, *(p.grad for p in encoder.parameters())])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


def test_encoder_says_what_is_wrong():
    with pytest.raises(ValueError, match='cross_scale must be None or .sum., got .mean.'):
        O2DETREncoderLayer(cross_scale='mean')
    layer = O2DETREncoderLayer(4, 8, share_levels=False, num_levels=2).double()
    with pytest.raises(ValueError, match='num_levels=2 levels, the neck gives 3'):
        layer(tokens(), tokens(), None, SHAPES)
    layer = O2DETREncoderLayer(4, 8, cross_scale='sum').double()
    with pytest.raises(ValueError, match='levels that halve'):
        layer(tokens([(4, 4), (3, 2)]), None, None, [(4, 4), (3, 2)])


# Head


def states(layers=2, count=2, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(layers, count, QUERIES, C, generator=generator, dtype=dtype)
    points = torch.rand(count, QUERIES, 2, generator=generator, dtype=dtype)
    return hidden, [points] * (layers + 1)


def shaken(module):
    """The module with random weights in place of zeros."""
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    return module


def test_a_new_head_predicts_horizontal_boxes():
    scores, boxes = head()(*states())
    assert scores.shape == (2, 2, QUERIES, CLASSES) and boxes.shape == (2, 2, QUERIES, 5)
    assert torch.equal(boxes[..., 4], torch.full_like(boxes[..., 4], 0.5))
    # As stock: small boxes at first, which later layers, if they refine them, leave as they are.
    sides = torch.tensor([-2.0, 0.0]).sigmoid().view(2, 1, 1, 1).expand(2, 2, QUERIES, 2)
    torch.testing.assert_close(boxes[..., 2:4], sides)
    torch.testing.assert_close(scores.sigmoid().mean(), torch.tensor(0.01), atol=5e-3, rtol=0)


@pytest.mark.parametrize('refine', [False, True])
def test_without_an_angle_it_is_stock_deformable_detr(refine):
    """Same weights, angle 0: same scores, labels and boxes as stock, bit for bit or nearly."""
    ours = detector(encoder=STOCK_ENCODER, with_box_refine=refine).eval()
    for branch in ours.bbox_head.reg_branches:
        nn.init.normal_(branch[-1].weight[:4], std=0.3)
    cfg = config(encoder=STOCK_ENCODER, with_box_refine=refine)
    cfg.encoder.pop('type')
    stock_head = dict(HEAD, type='DeformableDETRHead', loss_iou=dict(type='GIoULoss'))
    cfg.update(type='DeformableDETR', bbox_head=stock_head, _scope_='mmdet', train_cfg=None)
    stock = ROOT_MODELS.build(cfg).eval()
    assert type(stock) is DeformableDETR
    weights = {
        k: v[:4] if 'reg_branches' in k and '.4.' in k else v for k, v in ours.state_dict().items()
    }
    stock.load_state_dict(weights)
    images, samples = batch(0, 0, sizes=[(64, 96), (41, 77)])
    for found, expected in zip(
        ours.predict(images, copy.deepcopy(samples)), stock.predict(images, samples)
    ):
        found, expected = found.pred_instances, expected.pred_instances
        torch.testing.assert_close(found.scores, expected.scores)
        assert torch.equal(found.labels, expected.labels)
        assert found.bboxes[:, 4].remainder(math.pi / 2).abs().max() < 1e-6
        corners = oriented_corners(found.bboxes)
        boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
        height, width = found_shape(samples, expected)
        limits = boxes.new_tensor([width, height, width, height])
        boxes = torch.minimum(boxes.clamp(min=0), limits)  # stock cuts boxes at the border
        torch.testing.assert_close(boxes, expected.bboxes, atol=1e-3, rtol=1e-4)


def found_shape(samples, expected):
    return next(s.img_shape for s in samples if s.pred_instances is expected)


@pytest.mark.parametrize(
    'angle_diff, smallest, largest', [('periodic', 0, 0.01), ('plain', 0.99, 1)]
)
def test_angles_just_apart_across_the_border(angle_diff, smallest, largest):
    """An object at +89.9 degrees, a prediction at -89.9 degrees."""
    built = head(angle_diff=angle_diff)
    almost = math.radians(89.9)
    t = -almost / math.pi + 0.5
    boxes = torch.tensor([0.5, 0.5, 0.4, 0.2, t]).repeat(1, QUERIES, 1)
    objects = InstanceData(
        bboxes=torch.tensor([[50.0, 50.0, 40.0, 20.0, almost]]), labels=torch.tensor([1])
    )
    scores = torch.zeros(1, QUERIES, CLASSES)
    _, loss_bbox, loss_iou = built.loss_by_feat_single(scores, boxes, [objects], [meta(100, 100)])
    assert smallest <= loss_bbox / 5 < largest
    assert loss_iou < 0.05


def slow_losses(built, scores, boxes, truths, metas, square_aware=False):
    """The three losses of one layer with loops, given the matching."""
    matches = built.match(scores, boxes, truths, metas)
    count = max(sum(len(q) for q, _ in matches), 1)
    loss_cls = loss_bbox = loss_iou = 0.0
    for b, (queries, objects) in enumerate(matches):
        pairs = dict(zip(queries.tolist(), objects.tolist()))
        height, width = metas[b]['img_shape']
        for q in range(QUERIES):
            for c in range(CLASSES):
                p = scores[b, q, c].sigmoid()
                if q in pairs and truths[b].labels[pairs[q]] == c:
                    loss_cls = loss_cls - 0.25 * (1 - p) ** 2 * p.log()
                else:
                    loss_cls = loss_cls - 0.75 * p**2 * (1 - p).log()
            if q not in pairs:
                continue
            target = regularize_boxes(truths[b].bboxes[pairs[q]])
            cx, cy, w, h, t = boxes[b, q]
            parts = [cx - target[0] / width, cy - target[1] / height]
            parts += [w - target[2] / width, h - target[3] / height]
            turn = (t - (target[4] / math.pi + 0.5)).abs()
            turn = torch.minimum(turn, 1 - turn)
            if square_aware:
                turn = turn * (1 - target[3] / target[2])
            loss_bbox = loss_bbox + sum(p.abs() for p in parts) + turn
            pixels = torch.stack(
                [cx * width, cy * height, w * width, h * height, (t - 0.5) * math.pi]
            )
            overlap = OrientedBoxes.overlaps(
                OrientedBoxes(pixels.detach()[None]), OrientedBoxes(target[None])
            )
            loss_iou = loss_iou + 1 - overlap[0, 0]
    return 2 * loss_cls / count, 5 * loss_bbox / count, 2 * loss_iou / count


@pytest.mark.parametrize('square_aware', [False, True])
def test_losses_equal_loops(square_aware):
    built = shaken(head(square_aware=square_aware))
    scores, boxes = built(*states())
    truths, metas = [truth(3), truth(2, 1)], [meta(), meta(50, 70)]
    found = built.loss_by_feat_single(scores[0], boxes[0], truths, metas)
    expected = slow_losses(built, scores[0], boxes[0], truths, metas, square_aware)
    for name, a, b in zip(('cls', 'bbox', 'iou'), found, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f'{n}: {m}')


def test_matching_does_not_see_how_a_rectangle_is_written():
    """w and h swapped and a quarter turn, or a whole turn more: the same object."""
    built = shaken(head())
    scores, boxes = built(*states(layers=2, count=1))
    plain = truth(4)
    other = InstanceData(labels=plain.labels, bboxes=plain.bboxes.clone())
    other.bboxes[0] += torch.tensor([0, 0, 0, 0, 2 * math.pi])
    w, h = other.bboxes[1, 2:4].tolist()
    other.bboxes[1, 2:] = torch.tensor([h, w, other.bboxes[1, 4] + math.pi / 2])
    results = [
        built.loss_by_feat_single(scores[0], boxes[0], [t], [meta()]) for t in (plain, other)
    ]
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert torch.equal(plain.bboxes, truth(4).bboxes), 'the objects were changed'


def test_angle_held_at_zero():
    built = shaken(head(predict_angle=False))
    _, boxes = built(*states())
    assert torch.equal(boxes[..., 4], torch.full_like(boxes[..., 4], 0.5))
    assert (shaken(head())(*states())[1][..., 4] != 0.5).any()


def test_detections_are_the_highest_scores():
    scores = torch.tensor([[0.1, 3.0], [2.0, -1.0], [-5.0, 1.0]])
    boxes = torch.tensor([[10.0, 10, 4, 8, 0.1], [20, 20, 8, 4, -0.2], [30, 30, 6, 6, 2.0]])
    found = top_detections(scores, boxes, meta(scale=(0.5, 0.25)), 4, rescale=True)
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0, 1.0, 0.1]).sigmoid())
    assert found.labels.tolist() == [1, 0, 1, 0]
    expected = OrientedBoxes(boxes[[0, 1, 2, 0]])
    expected.rescale_((2.0, 4.0))
    torch.testing.assert_close(found.bboxes, expected.regularize('le90').tensor)
    assert (found.bboxes[:, 2] >= found.bboxes[:, 3]).all()
    assert len(top_detections(scores, boxes, meta(), 100, rescale=False).scores) == 6
    assert len(top_detections(scores, boxes, meta(), None, rescale=False).scores) == 3


def test_head_says_what_is_wrong():
    with pytest.raises(ValueError, match="angle_diff must be one of .*, got 'cyclic'"):
        head(angle_diff='cyclic')
    softmax = dict(HEAD, loss_cls=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=False))
    with pytest.raises(ValueError, match='use_sigmoid=True'):
        O2DETRHead(**softmax)
    horizontal = InstanceData(bboxes=torch.rand(2, 4), labels=torch.zeros(2, dtype=torch.long))
    built = head()
    scores, boxes = built(*states(count=1))
    with pytest.raises(ValueError, match="got 4 numbers a box: .*box_type='obox'"):
        built.loss_by_feat_single(scores[0], boxes[0], [horizontal], [meta()])


# Cascaded head


@pytest.mark.parametrize(
    'sides, level',
    [((20, 20), 0), ((111, 111), 0), ((56, 224), 1), ((300, 300), 2), ((999, 999), 3)],
)
def test_boxes_are_pooled_on_the_level_of_their_size(sides, level):
    extractor = OrientedRoIExtractor(2, (8, 16, 32, 64), 7, 56)
    rois = torch.tensor([[0, 50, 50, *sides, 0.3]], dtype=torch.float32)
    assert extractor.map_roi_levels(rois, 4).tolist() == [level]


def test_pooling_turns_clockwise():
    """Maps that hold their own coordinates: each cell gives the place where it is in the image."""
    stride, extractor = 8, OrientedRoIExtractor(2, (8,), 3, 56)
    grid = (torch.arange(16) + 0.5) * stride
    y, x = torch.meshgrid(grid, grid, indexing='ij')
    box = torch.tensor([64.0, 60.0, 48.0, 24.0, math.radians(30)])
    pooled = extractor([torch.stack([x, y])[None]], torch.cat([torch.zeros(1), box])[None])[0]
    steps = (torch.arange(3) - 1) / 3
    along = torch.tensor([math.cos(box[4]), math.sin(box[4])]) * box[2]
    across = torch.tensor([-math.sin(box[4]), math.cos(box[4])]) * box[3]
    expected = box[:2] + steps[None, :, None] * along + steps[:, None, None] * across
    torch.testing.assert_close(pooled.permute(1, 2, 0), expected, rtol=1e-4, atol=1e-2)


def refine_inputs(count=2):
    generator = torch.Generator().manual_seed(3)
    maps = [torch.randn(count, C, s, s, generator=generator) for s in (8, 4, 2, 1)]
    proposals = torch.stack([truth(QUERIES, seed=i).bboxes for i in range(count)])
    return maps, torch.randn(count, QUERIES, C, generator=generator), proposals


def refine_head():
    torch.manual_seed(0)
    built = O2DETRRefineHead(**REFINE)
    built.init_weights()
    return built


def test_refining_starts_from_the_proposals():
    built = refine_head()
    maps, queries, proposals = refine_inputs()
    for boxes, found in zip(proposals, built.predict(maps, queries, proposals, [meta(), meta()])):
        distances = torch.cdist(found.bboxes, regularize_boxes(boxes))
        assert distances.amin(1).max() < 1e-3
        torch.testing.assert_close(found.scores, torch.full((QUERIES,), 0.01), atol=0.01, rtol=0)


def test_refined_scores_and_boxes_are_the_final_ones():
    built = shaken(refine_head())
    maps, queries, proposals = refine_inputs(count=1)
    logits, deltas = built(maps, queries, built.prepare(proposals))
    (found,) = built.predict(maps, queries, proposals, [meta()])
    best = logits[0].sigmoid().flatten().sort(descending=True)
    torch.testing.assert_close(found.scores, best.values[:QUERIES])
    boxes = built.bbox_coder.decode(built.prepare(proposals)[0], deltas[0])
    rows = best.indices[:QUERIES] // CLASSES
    torch.testing.assert_close(found.bboxes, regularize_boxes(boxes[rows]))


def test_refine_losses_equal_loops():
    built = shaken(refine_head())
    maps, queries, proposals = refine_inputs()
    truths = [truth(2, seed=8), truth(0)]
    matches = [
        (torch.tensor([1, 4]), torch.tensor([1, 0])),
        (torch.tensor([], dtype=torch.long),) * 2,
    ]
    found = built.loss(maps, queries, proposals, matches, truths)
    logits, deltas = built(maps, queries, built.prepare(proposals))
    loss_bbox = loss_cls = 0.0
    for b in range(2):
        pairs = dict(zip(*(m.tolist() for m in matches[b])))
        for q in range(QUERIES):
            for c in range(CLASSES):
                p = logits[b, q, c].sigmoid()
                if q in pairs and truths[b].labels[pairs[q]] == c:
                    loss_cls = loss_cls - 0.25 * (1 - p) ** 2 * p.log()
                else:
                    loss_cls = loss_cls - 0.75 * p**2 * (1 - p).log()
            if q in pairs:
                box = regularize_boxes(proposals[b, q])
                target = regularize_boxes(truths[b].bboxes[pairs[q]])
                dx, dy = (target - box)[:2]
                cos, sin = box[4].cos(), box[4].sin()
                turn = (target[4] - box[4] + math.pi / 2) % math.pi - math.pi / 2
                code = torch.stack(
                    [
                        (cos * dx + sin * dy) / box[2] / 0.1,
                        (-sin * dx + cos * dy) / box[3] / 0.1,
                        (target[2] / box[2]).log() / 0.2,
                        (target[3] / box[3]).log() / 0.2,
                        turn / 0.1,
                    ]
                )
                loss_bbox = loss_bbox + (deltas[b, q] - code).abs().sum()
    torch.testing.assert_close(found['loss_bbox'], loss_bbox / 2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found['loss_cls'], 2 * loss_cls / 2, rtol=1e-4, atol=1e-4)


def test_pooling_does_not_depend_on_strides():
    built = shaken(refine_head())
    maps, queries, proposals = refine_inputs()
    last = [m.contiguous(memory_format=torch.channels_last) for m in maps]
    outs = [built(m, queries, built.prepare(proposals)) for m in (maps, last)]
    for a, b in zip(*outs):
        torch.testing.assert_close(a, b)


def test_tiny_proposals_stay_finite():
    built = shaken(refine_head())
    maps, queries, proposals = refine_inputs(count=1)
    proposals[..., 2:4] = 1e-6
    matches = [(torch.tensor([0]), torch.tensor([0]))]
    losses = built.loss(maps, queries, proposals, matches, [truth(1)])
    assert all(torch.isfinite(v) for v in losses.values())


# Detector

VARIANTS = dict(
    plain=dict(),
    box_refine=dict(with_box_refine=True),
    cascade=dict(refine=True),
    deformable=dict(encoder=STOCK_ENCODER),
    options=dict(
        encoder=dict(
            num_layers=2,
            num_cp=1,
            layer_cfg=dict(LAYER, share_levels=False, cross_scale='sum', with_pos=True),
        ),
        head=dict(
            angle_diff='plain',
            square_aware=True,
            loss_iou=dict(type='mmextra.OrientedGDLoss', loss_weight=2.0),
        ),
    ),
    horizontal=dict(head=dict(predict_angle=False)),
)


@pytest.mark.parametrize('variant', VARIANTS)
def test_loss_predict_and_tensor(variant):
    model = detector(**VARIANTS[variant]).train()
    images, samples = batch(3, 1, sizes=[(61, 83), (47, 90)])
    losses = model(images, samples, mode='loss')
    names = {f'{d}loss_{n}' for d in ('', 'd0.') for n in ('cls', 'bbox', 'iou')}
    names |= {'refine.loss_cls', 'refine.loss_bbox'} if variant == 'cascade' else set()
    assert losses.keys() == names
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, 'distributed training needs a gradient for every parameter'
    model.eval()
    with torch.no_grad():
        for sample in model(images, samples, mode='predict'):
            found = sample.pred_instances
            assert found.bboxes.shape == (QUERIES, 5) and torch.isfinite(found.bboxes).all()
            assert (found.scores[:-1] >= found.scores[1:]).all()
            assert (found.bboxes[:, 2] >= found.bboxes[:, 3]).all()
        outputs = model(images, samples, mode='tensor')
    assert outputs[0].shape == (2, 2, QUERIES, CLASSES) and outputs[1].shape == (2, 2, QUERIES, 5)
    assert len(outputs) == (4 if variant == 'cascade' else 2)


@pytest.mark.parametrize('variant', VARIANTS)
def test_images_do_not_see_each_other(variant):
    """An image alone and in a batch: the same detections."""
    model = detector(**VARIANTS[variant]).eval()
    if model.refine_head is not None:
        shaken(model.refine_head)
    images, samples = batch(0, 0, 0)
    with torch.no_grad():
        together = model(images, copy.deepcopy(samples), mode='predict')
        for image, sample, expected in zip(images, samples, together):
            (alone,) = model(image[None], [sample], mode='predict')
            found, expected = alone.pred_instances, expected.pred_instances
            torch.testing.assert_close(found.scores, expected.scores)
            torch.testing.assert_close(found.bboxes, expected.bboxes, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('variant', ['plain', 'box_refine', 'cascade'])
def test_images_without_objects(variant):
    model = detector(**VARIANTS[variant]).train()
    images, samples = batch(0, 0)
    losses = model(images, samples, mode='loss')
    for name, value in losses.items():
        assert (value > 0) if name.endswith('cls') else (value == 0), name
    sum(losses.values()).backward()
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all()
        for p in model.parameters()
        if p.requires_grad
    )


def test_more_objects_than_queries():
    model = detector(refine=True).train()
    images, samples = batch(QUERIES + 4, 0)
    losses = model(images, samples, mode='loss')
    assert all(torch.isfinite(v) for v in losses.values())
    scores, boxes = model(images, samples, mode='tensor')[:2]
    truths = [s.gt_instances for s in samples]
    matches = model.bbox_head.match(scores[-1], boxes[-1], truths, [s.metainfo for s in samples])
    assert [len(q) for q, _ in matches] == [QUERIES, 0]


@pytest.mark.parametrize('variant', ['plain', 'box_refine', 'cascade'])
def test_bfloat16(variant):
    model = detector(**VARIANTS[variant]).train()
    images, samples = batch(3, 0)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model(images, samples, mode='loss')
    sum(losses.values()).backward()
    exact = model(images, samples, mode='loss')
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name], rtol=0.1, atol=0.1)
    with torch.autocast('cpu', dtype=torch.bfloat16), torch.no_grad():
        found = model.eval()(images, samples, mode='predict')[0].pred_instances
    assert found.bboxes.dtype == found.scores.dtype == torch.float32


def test_refined_references_have_no_angle():
    """With box refinement the references are those of a stock decoder given four of the outputs."""
    torch.manual_seed(0)
    decoder = O2DETRDecoder(**copy.deepcopy(DECODER)).eval()
    branches = nn.ModuleList([nn.Linear(C, 5) for _ in range(2)])
    four = nn.ModuleList([nn.Linear(C, 4) for _ in range(2)])
    for a, b in zip(branches, four):
        b.load_state_dict({k: v[:4] for k, v in a.state_dict().items()})
    shapes = torch.tensor([(4, 4), (2, 2), (1, 1), (1, 1)])
    value = tokens(shapes.tolist(), channels=C, dtype=torch.float32)
    query = tokens([(QUERIES, 1)], channels=C, dtype=torch.float32, seed=1)
    inputs = dict(
        query=query,
        query_pos=query,
        value=value,
        key_padding_mask=None,
        reference_points=torch.rand(2, QUERIES, 2),
        spatial_shapes=shapes,
        level_start_index=torch.tensor([0, 16, 20, 21]),
        valid_ratios=torch.ones(2, 4, 2),
    )
    ours = decoder(**inputs, reg_branches=branches)
    stock = super(O2DETRDecoder, decoder).forward(**inputs, reg_branches=four)
    for a, b in zip(ours, stock):
        torch.testing.assert_close(a, b)
    assert ours[1].shape[-1] == 4


def test_the_cascade_does_not_move_its_proposals():
    """Refined losses reach the encoder and the decoder, not the layers that predict the boxes."""
    model = detector(refine=True).train()
    images, samples = batch(3, 2)
    losses = model(images, samples, mode='loss')
    sum(v for k, v in losses.items() if k.startswith('refine.')).backward()
    assert model.encoder.layers[0].convs[0].pointwise.weight.grad.abs().max() > 0
    assert model.decoder.layers[1].ffn.layers[1].weight.grad.abs().max() > 0
    assert all(p.grad is None or not p.grad.any() for p in model.bbox_head.parameters())


def test_the_cascade_reads_zeros_where_images_are_padded(monkeypatch):
    model = detector(refine=True).eval()
    seen = []
    forward = type(model.refine_head).forward
    monkeypatch.setattr(
        type(model.refine_head),
        'forward',
        lambda self, maps, *rest: seen.append(maps) or forward(self, maps, *rest),
    )
    images, samples = batch(0, 0, sizes=[(64, 96), (32, 48)])
    with torch.no_grad():
        model(images, samples, mode='predict')
    finest = seen[0][0]
    assert finest.shape == (2, C, 8, 12) and finest[0].abs().sum(0).min() > 0
    assert finest[1, :, 4:].abs().max() == 0 and finest[1, :, :, 6:].abs().max() == 0
    assert finest[1, :, :4, :6].abs().sum(0).min() > 0


def test_initial_weights():
    model = detector()
    assert 'level_embed' not in model.state_dict(), 'nothing trains it without with_pos'
    for conv in (layer.convs[0] for layer in model.encoder.layers):
        assert not conv.depthwise.bias.any() and not conv.pointwise.bias.any()
        std = conv.depthwise.weight.std().item()
        assert std == pytest.approx((2 / (9 * C)) ** 0.5, rel=0.3)  # not Xavier's
    with_pos = detector(encoder=dict(num_layers=1, layer_cfg=dict(LAYER, with_pos=True)))
    assert with_pos.level_embed.requires_grad and 'level_embed' in with_pos.state_dict()


def test_loaded_weights_are_not_drawn_anew(tmp_path):
    trained = shaken(detector(refine=True))
    torch.save(dict(state_dict=trained.state_dict()), tmp_path / 'trained.pth')
    source = dict(type='Pretrained', checkpoint=str(tmp_path / 'trained.pth'))
    loaded = detector(refine=True, init_cfg=source)
    assert_equal_weights(loaded.state_dict(), trained.state_dict())
    head = O2DETRRefineHead(**REFINE, init_cfg=dict(source, prefix='refine_head.'))
    head.init_weights()
    assert_equal_weights(head.state_dict(), trained.refine_head.state_dict())


def test_a_trained_o2detr_starts_the_cascade():
    plain, cascade = detector(), detector(refine=True)
    missing, unexpected = cascade.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(k.startswith('refine_head.') for k in missing)


def test_detector_says_what_is_wrong():
    with pytest.raises(ValueError, match='as_two_stage=False'):
        detector(as_two_stage=True)
    for part, message in (
        (dict(strides=(8, 16)), 'strides must be 4, one for each level .*, got 2 strides'),
        (dict(embed_dims=2 * C), f'embed_dims must be {C}, .*, got {2 * C}'),
        (dict(num_classes=9), f'num_classes must be {CLASSES}, .*, got 9'),
    ):
        refine = {**REFINE, **part, 'type': 'mmextra.O2DETRRefineHead'}
        with pytest.raises(ValueError, match=f'refine_head.{message}'):
            detector(refine_head=refine)
    encoding = dict(num_feats=C, normalize=True)
    with pytest.raises(ValueError, match=f'num_feats must be {C // 2}'):
        detector(positional_encoding=encoding)
