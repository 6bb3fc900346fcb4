"""The drawn classification sets: repeatable, balanced, and drawn as their labels say."""

import numpy as np
import pytest
import torch
from config_models import model_of, weightless
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from torch.utils.flop_counter import FlopCounterMode
from training import ROOT, train

from mmextra.backbones.drawn_images import (
    SHAPES,
    CrossedBars,
    DrawnImages,
    FactorAccuracy,
    ObjectAmongTextures,
    ShapePairs,
    coordinates,
    draw_shape_pattern,
    pattern,
    shape_mask,
)
from mmextra.registry import DATASETS

TINY = {
    'DrawnImages': dict(task='colours_outline', num_images=4, size=32),
    'ShapePairs': dict(num_images=4, token_label='exact'),
    'CrossedBars': dict(num_images=4),
    'ObjectAmongTextures': dict(num_images=4, size=32),
    'FactorAccuracy': dict(factors=dict(shape=5, texture=4)),
}


@pytest.mark.parametrize(
    'task, classes', [('same_colour', 2), ('colours_outline', 32), ('shape_pattern', 20)]
)
def test_images_are_repeatable_and_labels_balanced(task, classes):
    first, again, other = (
        DATASETS.build(dict(type='DrawnImages', task=task, num_images=40, size=48, seed=seed))
        for seed in (3, 3, 4)
    )
    assert len(first) == 40 and len(first.metainfo['classes']) == classes
    labels = [first.get_data_info(i)['gt_label'] for i in range(40)]
    assert set(np.bincount(labels)) <= {40 // classes, 40 // classes + 1}
    a, b, c = (s[7]['img'] for s in (first, again, other))
    assert a.shape == (48, 48, 3) and a.dtype == np.uint8
    assert (a == b).all() and (a != c).any() and (a != first[8]['img']).any()


def test_a_transform_that_writes_into_an_image_changes_that_sample_alone():
    dataset = DrawnImages('same_colour', 2, size=32)
    first = dataset[0]['img'].copy()
    dataset[0]['img'][:] = 0
    assert (dataset[0]['img'] == first).all()


def test_pipeline_gets_the_image():
    dataset = DATASETS.build(
        dict(
            type='DrawnImages',
            **TINY['DrawnImages'],
            pipeline=[dict(type='mmpretrain.PackInputs')],
        )
    )
    packed = dataset[1]
    assert packed['inputs'].shape == (3, 32, 32)
    assert packed['data_samples'].gt_label.item() == 1
    assert packed['data_samples'].ori_shape == (32, 32)


def objects(image):
    """Mean colour (n, 3) of each object, and its pixels (n, H, W)."""
    import cv2

    saturated = (np.ptp(image, axis=2) > 90).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(saturated)
    masks = [labels == i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] > 30]
    return np.array([image[mask].mean(0) for mask in masks]), np.array(masks)


def number_of_colours(colours):
    """Rows that differ from all rows before them."""
    return sum(all(np.linalg.norm(c - d) > 12 for d in colours[:i]) for i, c in enumerate(colours))


def test_two_discs_have_one_colour_where_the_label_says_so():
    dataset = DrawnImages('same_colour', 30, size=96)
    for i in range(30):
        colours, _ = objects(dataset[i]['img'].astype(int))
        assert len(colours) == 4
        assert number_of_colours(colours) == 4 - dataset[i]['gt_label']


def test_the_label_is_the_number_of_colours_and_the_outline():
    dataset = DrawnImages('colours_outline', 64, size=192, noise=1)
    for i in range(64):
        info = dataset[i]
        colours, masks = objects(info['img'].astype(int))
        assert len(colours) == 4
        assert number_of_colours(colours) == 1 + info['gt_label'] // 8
        # Share of the bounding box, and where in it the centre of mass lies, from -1 to 1.
        shape, angle = dataset.metainfo['classes'][info['gt_label']].split()[1:]
        share = {'square 0': 1, 'square 45': 1 / 2, 'cross 0': 0.58, 'cross 45': 0.63}
        towards = (
            {'0': (0, 1), '90': (-1, 0), '180': (0, -1), '270': (1, 0)}[angle]
            if shape == 'triangle'
            else (0, 0)
        )
        for mask in masks:
            rows, columns = np.nonzero(mask)
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert mask.sum() / (height * width) == pytest.approx(
                share.get(f'{shape} {angle}', 1 / 2), abs=0.1
            )
            if shape == 'cross':  # has an arm at the middle of the top
                assert mask[rows.min() + 1, int(columns.mean())] == (angle == '0')
            centre = [2 * (p.mean() - p.min()) / np.ptp(p) - 1 for p in (columns, rows)]
            assert centre == pytest.approx([x / 3 for x in towards], abs=0.1)


def test_patterns():
    x, y = np.meshgrid(np.arange(8) + 0.5, np.arange(8) + 0.5)
    rows, columns, checks, dots = (
        pattern(n, x, y, 4) for n in ('rows', 'columns', 'checks', 'dots')
    )
    assert (rows == rows[:, :1]).all() and (rows[:4, 0] == [-1, -1, 1, 1]).all()
    assert (columns == rows.T).all() and (checks == rows * columns).all()
    assert dots.mean() == pytest.approx(0.5)


@pytest.mark.parametrize('ground', [False, True])
@pytest.mark.parametrize('period', [2, 4])
def test_shapes_are_filled_with_patterns_of_the_period(period, ground):
    random = np.random.default_rng(0)
    image = draw_shape_pattern(random, label=0, size=64, period=period, ground=ground)  # rows
    grey = image.mean(-1, keepdims=True)
    inside = ~np.isclose(image - grey, (image - grey)[0, 0]).all(-1)  # of another hue than a corner
    rows = [row[mask] for row, mask in zip(grey, inside) if mask.any()]
    assert len(rows) > 20 and all(np.ptp(row) < 1e-6 for row in rows)
    light = np.array([row.mean() for row in rows])
    assert np.allclose(light[:-period], light[period:])
    assert not np.isclose(light[: -period // 2], light[period // 2 :]).any()
    assert (np.ptp(grey[~inside]) > 1) == ground


@pytest.mark.parametrize(
    'config',
    [
        'dsnet/dsnet-nano_1xb32-15e_colours-outline_demo.py',
        'spsa/spsa-mobilevit-nano_1xb64-4e_same-colour_demo.py',
        'irregular_patch_vit/irregular-patch-vit-nano_1xb64-6e_shape-pattern_demo.py',
        'kvt/kvt_vit-nano_1xb64-12e_distractors_demo.py',
        'scaled_relu/scaled-relu_vit-nano_1xb32-8e_distractors_demo.py',
        'token_labeling/token-labeling-shuffled_lvvit-nano_1xb32-10e_shape-pairs_demo.py',
        'token_labeling/lvvit-nano_1xb32-10e_shape-pairs_demo.py',
    ],
)
def test_demonstrations_train_and_evaluate(config, tmp_path):
    cfg = Config.fromfile(ROOT / 'configs' / config)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False, batch_size=4)
        loader.dataset.num_images = 8
    cfg.merge_from_dict(
        dict(
            test_dataloader=cfg.val_dataloader,
            train_cfg=dict(max_epochs=2, val_interval=2),
            default_hooks=dict(checkpoint=None),
            work_dir=str(tmp_path),
            log_level='WARNING',
        )
    )
    runner = train(cfg)
    assert runner.iter == 4
    assert 0 <= runner.message_hub.get_scalar('val/accuracy/top1').current() <= 100


@pytest.mark.parametrize(
    'demos, cost, tolerance',
    [
        ('volo/*_demo.py', 'parameters', 0.01),
        ('vip/*_demo.py', 'parameters', 0.01),
        ('elsa/*_demo.py', 'parameters', 0.05),
        ('dsnet/*_demo.py', 'parameters', 0.01),
        ('irregular_patch_vit/*_demo.py', 'multiply-adds', 0.1),
    ],
)
def test_what_is_compared_costs_the_same(demos, cost, tolerance):
    costs = []
    for path in sorted((ROOT / 'configs').glob(demos)):
        cfg = Config.fromfile(path)
        init_default_scope('mmpretrain')
        with weightless(), torch.no_grad():
            model = MODELS.build(model_of(cfg)).eval()
            if cost == 'parameters':
                costs.append(sum(p.numel() for p in model.parameters()))
                continue
            size = cfg.train_dataloader.dataset.size
            with FlopCounterMode(display=False) as counter:
                model(torch.empty(1, 3, size, size))
            costs.append(counter.get_total_flops() / 2)
    assert len(costs) > 1 and max(costs) < (1 + tolerance) * min(costs)
    if cost == 'multiply-adds':
        assert costs == pytest.approx([20e6] * len(costs), rel=0.05)


@pytest.mark.parametrize(
    'options, message',
    [
        (
            dict(task='colours'),
            "one of same_colour, colours_outline, shape_pattern, got 'colours'",
        ),
        (dict(size=16), 'at least 32 pixels'),
        (dict(noise=-1), 'noise must be finite and not negative'),
        (dict(period=1), 'period must be at least 2 pixels, got 1'),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DrawnImages(**{**TINY['DrawnImages'], **options})


@pytest.mark.parametrize('name', ['ShapePairs', 'CrossedBars', 'ObjectAmongTextures'])
def test_same_seed_same_images(name):
    first, again, other = (
        DATASETS.build(dict(type=name, num_images=40, seed=seed)) for seed in (0, 0, 1)
    )
    assert len(first) == 40 and first[3]['img'].shape == (64, 64, 3)
    assert np.array_equal(first[3]['img'], again[3]['img'])
    assert not np.array_equal(first[3]['img'], other[3]['img'])
    labels = [first[i]['gt_label'] for i in range(40)]
    assert len(set(labels)) > 8 and max(labels) < len(first.metainfo['classes'])


def test_datasets_run_through_a_pipeline():
    DefaultScope.get_instance('mmpretrain', scope_name='mmpretrain')
    keys = ('token_label', 'crop_coords')
    pipeline = [dict(type='mmpretrain.PackInputs', algorithm_keys=keys)]
    dataset = ShapePairs(2, token_label='exact', pipeline=pipeline)
    packed = dataset[1]
    assert packed['inputs'].shape == (3, 64, 64)
    assert packed['data_samples'].token_label.shape == (2, 2, 16, 16)


def test_label_maps_cover_the_objects():
    """The class with the larger share of the map is that of the image."""
    exact = ShapePairs(30, token_label='exact')
    shuffled = ShapePairs(30, token_label='shuffled')
    agree = 0
    for i in range(30):
        values, ids = exact[i]['token_label']
        assert values.max() == ShapePairs.CONFIDENCE and values.min() == 0
        area = values.sum((1, 2))
        agree += int(ids[area.argmax(), 0, 0]) == exact[i]['gt_label']
        moved = shuffled[i]['token_label']
        assert np.array_equal(exact[i]['img'], shuffled[i]['img'])
        np.testing.assert_allclose(moved[0].sum((1, 2)), area, rtol=1e-5)
        assert not np.array_equal(moved, exact[i]['token_label'])
    assert agree >= 25  # outlines fill their extent differently
    assert 'token_label' not in ShapePairs(1)[0]
    with pytest.raises(ValueError, match='token_label'):
        ShapePairs(1, token_label='noisy')


def test_shapes_differ():
    x, y = coordinates(32)
    masks = [shape_mask(name, (x - 16) / 12, (y - 16) / 12) for name in SHAPES]
    for i, a in enumerate(masks):
        assert 0.1 < a.mean() < 0.9
        assert all(not np.array_equal(a, b) for b in masks[:i])


def test_bars_are_where_the_label_says():
    for info in CrossedBars(20):
        image = info['img'].astype(int)
        red = (image[..., 0] == 230) & (image[..., 2] == 40)
        blue = (image[..., 2] == 230) & (image[..., 0] == 40)
        row, column = divmod(info['gt_label'], 5)
        assert np.median(np.nonzero(red)[0]) // 12.8 == row
        assert np.median(np.nonzero(blue)[1]) // 12.8 == column


def test_object_among_textures():
    """The object lies in the masked cell, light on dark; every class looks different."""
    dataset, means, places = ObjectAmongTextures(200, size=48), {}, set()
    for i in range(200):
        info = dataset[i]
        mask, label = info['object_mask'], info['gt_label']
        assert mask.shape == (48, 48) and mask.sum() == 16**2 and label == i % 10
        rows, columns = np.nonzero(mask)
        top, left = rows.min(), columns.min()
        assert top % 16 == left % 16 == 0 and rows.max() - top == columns.max() - left == 15
        places.add((top, left))
        cell = info['img'][mask].reshape(16, 16, 3).mean(-1)
        assert np.ptp(cell) > 40
        means.setdefault(label, []).append(cell > (cell.min() + cell.max()) / 2)
    assert len(places) == 9 and len(means) == len(dataset.metainfo['classes']) == 10
    outlines = [np.mean(m, axis=0) > 0.5 for m in means.values()]
    apart = [(a ^ b).mean() for i, a in enumerate(outlines) for b in outlines[:i]]
    assert min(apart) > 0.05
    outside = dataset[0]['img'][~dataset[0]['object_mask']].reshape(-1, 3)
    assert len(np.unique(outside // 64, axis=0)) > 8  # colours of all kinds
    with pytest.raises(ValueError, match='size must be a multiple of 16 pixels, got 40'):
        ObjectAmongTextures(1, size=40)


def test_factor_accuracy():
    metric = FactorAccuracy(dict(shape=2, texture=3))
    for predicted, true in ((0, 0), (1, 0), (3, 0), (5, 4)):
        score = torch.zeros(6)
        score[predicted] = 1
        metric.process(None, [dict(pred_score=score, gt_label=torch.tensor([true]))])
    assert metric.evaluate(4) == {'accuracy/shape': 75.0, 'accuracy/texture': 50.0}
