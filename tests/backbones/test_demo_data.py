"""Drawn datasets: reproducible, and what the labels say is in the images."""

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope

from mmextra.backbones.demo_data import (
    SHAPES,
    CrossedBars,
    FactorAccuracy,
    ShapePairs,
    shape_mask,
)
from mmextra.registry import DATASETS

TINY = {
    'ShapePairs': dict(num_images=4, token_label='exact'),
    'CrossedBars': dict(num_images=4),
    'FactorAccuracy': dict(factors=dict(shape=5, texture=4)),
}


@pytest.mark.parametrize('name', ['ShapePairs', 'CrossedBars'])
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
    masks = [shape_mask(name, 32, (16, 16), 12) for name in SHAPES]
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


def test_factor_accuracy():
    metric = FactorAccuracy(dict(shape=2, texture=3))
    for predicted, true in ((0, 0), (1, 0), (3, 0), (5, 4)):
        score = torch.zeros(6)
        score[predicted] = 1
        metric.process(None, [dict(pred_score=score, gt_label=torch.tensor([true]))])
    assert metric.evaluate(4) == {'accuracy/shape': 75.0, 'accuracy/texture': 50.0}
