"""Data sets, transforms, metric and visualizer of the oriented-box layer."""

import math
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import PolygonMasks
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from mmextra.det.oriented import OrientedTTAModel, oriented_map
from mmextra.det.oriented.dota import CLASSES, CLASSES_V2, CLASSES_V15
from mmextra.det.oriented.metric import merge_patches
from mmextra.ops.rotated import oriented_corners
from mmextra.registry import DATASETS, METRICS, TRANSFORMS, VISUALIZERS
from mmextra.structures.oriented_boxes import OrientedBoxes, boxes_to_quads, oriented_overlaps

LINES = [
    'imagesource:GoogleEarth',
    'gsd:0.2',
    '10 10 30 10 30 20 10 20 ship 0',
    '5 5 9 5 9 25 5 25 plane 2',
]


@pytest.fixture
def dota(tmp_path):
    """Writes annotation files, and an image of 48x32 for each; returns the data set of them."""

    def write(*files, suffix='png', images=True, version='', **options):
        for folder in ('images', 'annfiles'):
            (tmp_path / folder).mkdir(exist_ok=True)
        for number, lines in enumerate(files):
            (tmp_path / 'annfiles' / f'P{number}.txt').write_text('\n'.join(lines))
            if images:
                picture = np.full((32, 48, 3), number, np.uint8)
                cv2.imwrite(str(tmp_path / 'images' / f'P{number}.{suffix}'), picture)
        options = dict(ann_file='annfiles/', data_prefix=dict(img_path='images/'), **options)
        return DATASETS.build(
            dict(type=f'OrientedDOTADataset{version}', data_root=str(tmp_path), **options)
        )

    return write


def warnings_of(caplog, build):
    """What is logged while something is built."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        found = build()
    finally:
        logger.removeHandler(caplog.handler)
    return found, caplog.text


# Data sets


@pytest.mark.parametrize('suffix', ['png', 'jpg'])
def test_objects_of_an_image(dota, suffix):
    data = dota(LINES, [], suffix=suffix, img_suffix=suffix)
    assert len(data) == 2 and data.metainfo['classes'] == CLASSES
    info = data.get_data_info(0)
    assert (info['img_id'], info['width'], info['height']) == ('P0', 48, 32)
    ship, plane = info['instances']
    assert (ship['bbox_label'], plane['bbox_label']) == (6, 0) and data.get_cat_ids(0) == [6, 0]
    assert np.allclose(ship['bbox'], [20, 15, 20, 10, 0], atol=1e-5)
    assert np.allclose(plane['bbox'][:4], [7, 15, 20, 4]) and abs(
        plane['bbox'][4]
    ) == pytest.approx(math.pi / 2)
    assert ship['quad'] == [10, 10, 30, 10, 30, 20, 10, 20]
    assert (ship['ignore_flag'], plane['ignore_flag']) == (0, 0)
    assert data.get_data_info(1)['instances'] == []


def test_difficult_objects_are_ignored_above_the_threshold(dota):
    flags = [i['ignore_flag'] for i in dota(LINES, diff_thr=1).get_data_info(0)['instances']]
    assert flags == [0, 1]


def test_versions():
    assert len(CLASSES) == 15 and CLASSES_V15[15:] == ('container-crane',)
    assert CLASSES_V2[16:] == ('airport', 'helipad')
    for name, classes in (('', CLASSES), ('V15', CLASSES_V15), ('V2', CLASSES_V2)):
        data = DATASETS.build(dict(type=f'OrientedDOTADataset{name}', lazy_init=True))
        assert data.metainfo['classes'] == classes
        assert len(data.metainfo['palette']) == len(set(data.metainfo['palette'])) == len(classes)


def test_empty_images_are_left_out_in_training_only(dota, caplog):
    files, filters = (LINES, [], LINES[:2]), dict(filter_cfg=dict(filter_empty_gt=True))
    data, text = warnings_of(caplog, lambda: dota(*files, **filters))
    assert len(data) == 1 and '2 of 3 images have no objects' in text
    assert len(dota(*files, test_mode=True, **filters)) == len(dota(*files)) == 3


def test_images_without_annotations(dota, tmp_path):
    dota(LINES, LINES)
    data = DATASETS.build(
        dict(
            type='OrientedDOTADataset',
            data_root=str(tmp_path),
            data_prefix=dict(img_path='images/'),
            test_mode=True,
        )
    )
    assert [data.get_data_info(i)['img_id'] for i in range(2)] == ['P0', 'P1']
    assert data.get_data_info(0)['instances'] == []


def test_a_choice_of_classes_leaves_the_others_out_and_says_so(dota, caplog):
    options = dict(metainfo=dict(classes=('ship', 'my-own')))
    data, text = warnings_of(caplog, lambda: dota(LINES, **options))
    assert [i['bbox_label'] for i in data.get_data_info(0)['instances']] == [0]
    assert '1 of classes that are not selected: left out' in text


def test_flat_and_outside_objects_are_kept_and_counted(dota, caplog):
    lines = [
        '10 10 30 10 30 10 10 10 ship 0',  # a line
        '5 5 5 5 5 5 5 5 ship 0',  # a point
        '100 10 120 10 120 20 100 20 ship 0',
    ]
    data, text = warnings_of(caplog, lambda: dota(lines))
    boxes = np.array([i['bbox'] for i in data.get_data_info(0)['instances']])
    assert np.allclose(boxes[:, :4], [[20, 10, 20, 1], [5, 5, 1, 1], [110, 15, 20, 10]])
    assert '2 thinner than a pixel' in text and '1 with their centre outside' in text


@pytest.mark.parametrize(
    'line, message',
    [
        ('1 2 3 4 5 6 7 8', r'P0.txt:2: expected x1 .* found 8 fields'),
        ('1 2 3 4 5 6 ship 0', r'P0.txt:2: expected x1'),
        ('1 2 3 4 5 6 7 8 ship hard', r'P0.txt:2: expected x1'),
        ('1 2 3 4 5 6 7 8 boat 0', r"class 'boat'.*metainfo"),
        ('1 2 3 4 5 6 7 8 container-crane 0', r'mmextra.OrientedDOTADatasetV15 has it'),
        ('1 2 3 4 5 6 7 8 helipad 0', r'mmextra.OrientedDOTADatasetV2 has it'),
    ],
)
def test_broken_lines_and_unknown_classes_name_the_file(dota, line, message):
    with pytest.raises(ValueError, match=message):
        dota([LINES[2], line])


def test_the_difficulty_may_be_left_out(dota):
    data = dota(['10 10 30 10 30 20 10 20 ship'], diff_thr=0)
    assert data.get_data_info(0)['instances'][0]['ignore_flag'] == 0


def test_absent_folders_and_images(dota, tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no image .*P0.png'):
        dota(LINES, images=False)
    (tmp_path / 'annfiles' / 'P0.txt').unlink()
    with pytest.raises(FileNotFoundError, match='found nothing in'):
        dota()
    with pytest.raises(FileNotFoundError, match='must be a folder of .txt files'):
        DATASETS.build(
            dict(
                type='OrientedDOTADataset',
                ann_file=str(tmp_path / 'none'),
                data_prefix=dict(img_path=str(tmp_path)),
            )
        )


def test_a_prefix_of_other_data_sets_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"must be dict\(img_path=FOLDER\), got {'img': "):
        DATASETS.build(
            dict(
                type='OrientedDOTADataset',
                data_root=str(tmp_path),
                data_prefix=dict(img='images/'),
            )
        )


def pipeline(*steps, size=(96, 64)):
    return [
        dict(type='mmdet.LoadImageFromFile'),
        dict(type='mmdet.LoadAnnotations', with_bbox=True, box_type='obox'),
        dict(type='mmdet.Resize', scale=size, keep_ratio=True),
        *steps,
        dict(type='mmdet.PackDetInputs', meta_keys=('img_id', 'ori_shape', 'img_shape')),
    ]


def test_the_stock_pipeline_takes_them(dota):
    flip = dict(type='mmdet.RandomFlip', prob=1.0, direction='horizontal')
    data = dota(LINES, diff_thr=1, pipeline=pipeline(flip))
    sample = data[0]['data_samples']
    boxes = sample.gt_instances.bboxes
    assert isinstance(boxes, OrientedBoxes) and sample.img_shape == (64, 96)
    assert np.allclose(boxes.tensor, [[96 - 40, 30, 40, 20, 0]], atol=1e-4)
    assert len(sample.ignored_instances) == 1


# Transforms


def drawn(angle=0.4, size=(90, 120)):
    """A white rectangle on black, and its box."""
    box = torch.tensor([[size[1] * 0.6, size[0] * 0.45, 40.0, 12.0, angle]])
    image = np.zeros((*size, 3), np.uint8)
    # OpenCV draws in coordinates of pixel centres.
    corners = (oriented_corners(box)[0].numpy() - 0.5) * 16
    cv2.fillPoly(image, [corners.round().astype(np.int32)], (255, 255, 255), shift=4)
    return image, box


def results_of(image, boxes, labels=(0,)):
    return dict(
        img=image,
        img_shape=image.shape[:2],
        gt_bboxes=OrientedBoxes(boxes),
        gt_bboxes_labels=np.array(labels),
        gt_ignore_flags=np.zeros(len(boxes), bool),
    )


def box_in(image):
    """The box around the bright pixels."""
    y, x = (image[..., 0] > 127).nonzero()
    centers = torch.tensor([[x.mean() + 0.5, y.mean() + 0.5]], dtype=torch.float32)
    moments = np.cov(np.stack([x, y]))
    values, vectors = np.linalg.eigh(moments)
    angle = math.atan2(vectors[1, 1], vectors[0, 1])
    sides = torch.tensor([[math.sqrt(12 * values[1]), math.sqrt(12 * values[0]), angle]])
    return torch.cat([centers, sides.float()], 1)


@pytest.mark.parametrize('angle', [90, -90, 37.0, -120.5])
def test_image_and_boxes_turn_together(angle):
    image, box = drawn(size=(100, 100))
    turn = TRANSFORMS.build(dict(type='OrientedRandomRotate', prob=1.0))
    assert oriented_overlaps(box_in(image), box).item() > 0.9
    found = turn.turn(results_of(image, box), angle)
    assert found['img'].shape == image.shape
    assert oriented_overlaps(box_in(found['img']), found['gt_bboxes'].tensor).item() > 0.9
    projected = OrientedBoxes(box)
    projected.project_(found['homography_matrix'])
    assert oriented_overlaps(projected, found['gt_bboxes']).item() > 0.99


def test_four_quarter_turns_change_nothing():
    image, box = drawn(size=(100, 100))
    turn = TRANSFORMS.build(dict(type='OrientedRandomRotate'))
    results = results_of(image, box)
    for _ in range(4):
        results = turn.turn(results, 90)
    assert np.array_equal(results['img'], image)
    torch.testing.assert_close(results['gt_bboxes'].tensor, box, rtol=0, atol=1e-3)


def test_boxes_whose_centre_leaves_are_dropped():
    boxes = torch.tensor([[60.0, 45, 10, 5, 0], [118, 45, 10, 5, 0]])
    turn = TRANSFORMS.build(dict(type='OrientedRandomRotate'))
    results = turn.turn(results_of(np.zeros((90, 120, 3), np.uint8), boxes, (3, 4)), 90)
    assert results['gt_bboxes_labels'].tolist() == [3] and len(results['gt_ignore_flags']) == 1
    assert np.allclose(results['gt_bboxes'].centers, [[60, 45]], atol=1e-3)


def test_objects_without_direction_are_turned_by_quarters():
    image, box = drawn(angle=0.0, size=(100, 100))
    turn = TRANSFORMS.build(
        dict(type='OrientedRandomRotate', prob=1.0, angle_range=180, rect_classes=[9, 11])
    )
    np.random.seed(0)
    angles = {
        label: [
            math.degrees(turn(results_of(image.copy(), box, (label,)))['gt_bboxes'].angles.item())
            for _ in range(8)
        ]
        for label in (9, 0)
    }
    # Up to half a turn, a rectangle turned by quarters lies or stands.
    assert all(min(abs(a % 90), 90 - abs(a % 90)) < 1e-2 for a in angles[9])
    assert not all(min(abs(a % 90), 90 - abs(a % 90)) < 1e-2 for a in angles[0])
    still = TRANSFORMS.build(dict(type='OrientedRandomRotate', prob=0.0))
    assert np.array_equal(still(results_of(image, box))['img'], image)
    assert 'rect_classes=[9, 11]' in repr(turn)


def test_bad_options_and_input_of_rotation():
    with pytest.raises(ValueError, match='prob must be'):
        TRANSFORMS.build(dict(type='OrientedRandomRotate', prob=1.5))
    with pytest.raises(ValueError, match='angle_range must be'):
        TRANSFORMS.build(dict(type='OrientedRandomRotate', angle_range=270))
    turn = TRANSFORMS.build(dict(type='OrientedRandomRotate'))
    with pytest.raises(TypeError, match="box_type='obox'"):
        turn(dict(img=np.zeros((4, 4, 3)), gt_bboxes=np.zeros((1, 4))))


def test_polygons_become_oriented_boxes(caplog):
    quads = boxes_to_quads(torch.tensor([[30.0, 20, 20, 6, 0.5]])).numpy()
    masks = PolygonMasks([[quads[0]], [np.array([5.0, 5, 9, 5, 7, 5])]], 50, 60)
    convert = TRANSFORMS.build(dict(type='PolygonToOriented'))
    results, text = warnings_of(
        caplog, lambda: convert(dict(gt_masks=masks, gt_bboxes=np.zeros((2, 4))))
    )
    boxes = results['gt_bboxes'].tensor
    assert 'gt_masks' not in results and repr(convert) == 'PolygonToOriented()'
    assert np.allclose(boxes[0], [30, 20, 20, 6, 0.5], atol=1e-2)
    assert np.allclose(boxes[1, :4], [7, 5, 4, 1]) and '1 objects thinner than a pixel' in text
    _, text = warnings_of(caplog, lambda: convert(dict(gt_masks=masks)))
    assert text.count('thinner') == 1, 'said once, not for every image of every epoch'
    with pytest.raises(KeyError, match='with_mask=True'):
        convert(dict(gt_bboxes=np.zeros((2, 4))))


# Metric


def image_of(case, i):
    """Detections and objects of one image of the golden file."""
    num_classes = case.meta['num_classes']
    dets = [case.inputs[f'det_{i}_{c}'] for c in range(num_classes)]
    labels = torch.cat([torch.full((len(d),), c) for c, d in enumerate(dets)])
    dets = torch.cat(dets)
    gt, ignored = case.inputs[f'gt_{i}'], case.inputs[f'ig_{i}']
    return dict(
        pred=dict(bboxes=dets[:, :5], scores=dets[:, 5], labels=labels),
        gt=dict(
            bboxes=torch.cat([gt, ignored]),
            labels=torch.cat([case.inputs[f'gtl_{i}'], case.inputs[f'igl_{i}']]),
            ignored=torch.arange(len(gt) + len(ignored)) >= len(gt),
        ),
    )


@pytest.mark.golden('o2detr', 'dota_map*')
def test_average_precision(case):
    images = [image_of(case, i) for i in range(case.meta['num_imgs'])]
    found = {}
    for name in case.outputs:
        if not name.startswith('mAP_'):
            continue
        percent, short = name.split('_')[1:]
        mode = '11points' if short == '11pt' else short
        result = oriented_map(images, case.meta['num_classes'], int(percent) / 100, mode)
        found[name] = torch.tensor(result['mAP'])
        found[f'AP_{percent}_{short}'] = torch.from_numpy(result['ap'])
        found['num_gts'] = torch.from_numpy(result['num_gts'])
    case.check(found, rtol=1e-6, atol=1e-6)


def random_boxes(count, size=100):
    box = torch.rand(count, 5)
    return torch.cat([box[:, :2] * size, 5 + box[:, 2:4] * 30, box[:, 4:] * 3 - 1.5], 1)


def precision_in_loops(images, label, thr):
    """AP over the area, as it is defined: one detection after the other."""
    rows, total = [], 0
    for number, image in enumerate(images):
        gt = image['gt']
        mine = [j for j in range(len(gt['labels'])) if gt['labels'][j] == label]
        total += sum(not gt['ignored'][j] for j in mine)
        for i in range(len(image['pred']['labels'])):
            if image['pred']['labels'][i] == label:
                rows.append((image['pred']['scores'][i].item(), number, i, mine))
    found, right, wrong, points = set(), 0, 0, []
    for _, number, i, mine in sorted(rows, key=lambda r: -r[0]):
        image, best, which = images[number], -1.0, None
        for j in mine:
            pair = image['pred']['bboxes'][i : i + 1], image['gt']['bboxes'][j : j + 1]
            overlap = oriented_overlaps(*pair).item()
            if overlap > best:
                best, which = overlap, j
        if best >= thr and image['gt']['ignored'][which]:
            continue
        if best >= thr and (number, which) not in found:
            found.add((number, which))
            right += 1
        else:
            wrong += 1
        points.append((right / max(total, 1), right / (right + wrong)))
    area, before = 0.0, 0.0
    for k, (recall, _) in enumerate(points):
        area += (recall - before) * max(p for _, p in points[k:])
        before = recall
    return area, total


def test_average_precision_in_loops():
    images = []
    for _ in range(4):
        gt = random_boxes(6)
        pred = torch.cat([gt[:5] + torch.randn(5, 5) * torch.tensor([2, 2, 2, 2, 0.1]), gt[:2]])
        pred = torch.cat([pred, random_boxes(3)])
        labels = torch.tensor([0, 1, 0, 1, 0, 1])
        images.append(
            dict(
                pred=dict(
                    bboxes=pred, scores=torch.rand(10), labels=torch.cat([labels[:5], labels[:5]])
                ),
                gt=dict(bboxes=gt, labels=labels, ignored=torch.rand(6) < 0.3),
            )
        )
    result = oriented_map(images, 3, 0.5, 'area')
    for label in range(3):
        expected, total = precision_in_loops(images, label, 0.5)
        assert result['ap'][label] == pytest.approx(expected, abs=1e-6)
        assert result['num_gts'][label] == total
    assert result['mAP'] == pytest.approx(result['ap'][:2].mean())


def sample_of(img_id, pred, gt=None, ignored=None, labels=None):
    """A data sample, as the evaluator hands it to the metric."""
    labels = torch.zeros(len(pred), dtype=torch.long) if labels is None else labels
    sample = DetDataSample(metainfo=dict(img_id=img_id))
    sample.pred_instances = InstanceData(
        bboxes=pred, scores=torch.linspace(0.9, 0.5, len(pred)), labels=labels
    )
    for key, boxes in (('gt_instances', gt), ('ignored_instances', ignored)):
        if boxes is not None:
            zeros = torch.zeros(len(boxes), dtype=torch.long)
            setattr(sample, key, InstanceData(bboxes=boxes, labels=zeros))
    return sample.to_dict()


def evaluated(samples, classes=('ship', 'plane'), **options):
    metric = METRICS.build(dict(type='OrientedDOTAMetric', **options))
    metric.dataset_meta = dict(classes=classes)
    metric.process({}, samples)
    return metric.evaluate(size=len(samples))


def test_a_perfect_detector():
    boxes = random_boxes(5)
    samples = [sample_of('a', boxes, OrientedBoxes(boxes)), sample_of('b', boxes[:0], boxes[:0])]
    found = evaluated(samples, iou_thrs=[0.5, 0.75, 0.95])
    assert found == {'dota/AP50': 1, 'dota/AP75': 1, 'dota/AP95': 1, 'dota/mAP': 1}


def test_what_counts_as_wrong():
    box, far = torch.tensor([[50.0, 50, 20, 10, 0]]), torch.tensor([[10.0, 10, 5, 5, 0]])
    twice = sample_of('a', box.repeat(2, 1), box)
    assert evaluated([twice], eval_mode='area')['dota/AP50'] == 1  # the copy comes after all recall
    first_wrong = sample_of('a', torch.cat([far, box]), box)
    assert evaluated([first_wrong], eval_mode='area')['dota/AP50'] == 0.5
    ignored = sample_of('a', torch.cat([far, box]), box, ignored=far)
    assert evaluated([ignored], eval_mode='area')['dota/AP50'] == 1
    empty = sample_of('b', torch.cat([box, box]), box[:0])
    both = evaluated([empty, sample_of('a', box, box)], eval_mode='area')
    assert both['dota/AP50'] == 0.5
    assert evaluated([sample_of('a', box[:0], box)])['dota/mAP'] == 0
    assert evaluated([sample_of('a', box, box[:0])])['dota/mAP'] == 0  # no class has objects


def test_patches_are_merged(tmp_path):
    whole = torch.tensor([[250.0, 120, 40, 16, 0.5]])
    samples = []
    for x, y in ((0, 0), (200, 0), (200, 100)):
        patch = whole - torch.tensor([x, y, 0, 0, 0])
        samples.append(sample_of(f'P__01__256__{x}___{y}', patch, patch))
    found = evaluated(samples, merge_patches=True, outfile_prefix=str(tmp_path))
    assert found['dota/mAP'] == 1
    lines = (tmp_path / 'Task1_ship.txt').read_text().splitlines()
    assert len(lines) == 1  # one object, one detection
    name, score, *corners = lines[0].split()
    assert (name, score) == ('P__01', '0.90') and all(len(v.split('.')[1]) == 2 for v in corners)
    expected = boxes_to_quads(whole)[0]
    assert np.allclose([float(v) for v in corners], expected, atol=0.01)
    with zipfile.ZipFile(tmp_path / 'Task1.zip') as archive:
        assert sorted(archive.namelist()) == ['Task1_plane.txt', 'Task1_ship.txt']
        assert archive.read('Task1_plane.txt') == b''


def test_merging_keeps_classes_and_neighbours():
    box = torch.tensor([[50.0, 50, 20, 10, 0], [50, 70, 20, 10, 0], [50, 50, 20, 10, 0]])
    pred = dict(bboxes=box, scores=torch.tensor([0.9, 0.8, 0.7]), labels=torch.tensor([0, 0, 1]))
    results = [dict(img_id=f'{name}__64__0___0', pred=pred) for name in ('A', 'B')] + [
        dict(img_id='A__64__0___1', pred=pred)
    ]
    merged = merge_patches(results)
    assert [r['img_id'] for r in merged] == ['A', 'B']
    assert [len(r['pred']['labels']) for r in merged] == [3, 3] and 'gt' not in merged[0]


def test_writing_without_evaluating(tmp_path):
    sample = sample_of('P1', random_boxes(2), labels=torch.tensor([0, 1]))
    found = evaluated([sample], format_only=True, outfile_prefix=str(tmp_path / 'new'))
    assert found == {} and (tmp_path / 'new' / 'Task1.zip').is_file()
    assert (tmp_path / 'new' / 'Task1_plane.txt').read_text().startswith('P1 0.50 ')


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(iou_thrs=[]), 'iou_thrs must be'),
        (dict(iou_thrs=50), 'iou_thrs must be'),
        (dict(eval_mode='coco'), 'eval_mode must be'),
        (dict(format_only=True), 'needs outfile_prefix'),
    ],
)
def test_bad_options_of_the_metric(options, message):
    with pytest.raises(ValueError, match=message):
        METRICS.build(dict(type='OrientedDOTAMetric', **options))


def test_bad_input_of_the_metric():
    with pytest.raises(ValueError, match='no objects to compare with'):
        evaluated([sample_of('P1', random_boxes(2))])
    with pytest.raises(ValueError, match="boxes of five numbers, got 4: .*box_type='obox'"):
        evaluated([sample_of('P1', random_boxes(2), random_boxes(1)[:, :4])])
    with pytest.raises(ValueError, match="ID__SIZE__X___Y.*got 'P1'"):
        evaluated([sample_of('P1', random_boxes(2), random_boxes(1))], merge_patches=True)


# Visualizer


def test_boxes_are_drawn_as_polygons(tmp_path):
    image, box = drawn(angle=0.6)
    visualizer = VISUALIZERS.build(
        dict(
            type='OrientedLocalVisualizer',
            name='oriented',
            bbox_color=(255, 0, 0),
            alpha=1.0,
            line_width=2,
        )
    )
    visualizer.dataset_meta = dict(classes=('ship', 'plane'), palette=None)
    sample = DetDataSample()
    sample.gt_instances = InstanceData(bboxes=OrientedBoxes(box), labels=torch.tensor([1]))
    sample.pred_instances = InstanceData(
        bboxes=box, labels=torch.tensor([0]), scores=torch.tensor([0.7])
    )
    out = tmp_path / 'drawn.png'
    visualizer.add_datasample('a', np.zeros_like(image), sample, out_file=str(out))
    picture = cv2.imread(str(out))[..., ::-1].astype(int)
    left, right = picture[:, :120], picture[:, 120:]
    for half in (left, right):
        red = (half[..., 0] > 150) & (half[..., 1] < 90)
        for x, y in (oriented_corners(box)[0] - 0.5).tolist():
            x, y = round(x), round(y)
            assert red[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3].any()
        assert not red[round(box[0, 1].item()), round(box[0, 0].item())]
    assert not np.array_equal(left, right)  # one of them has a score
    empty = InstanceData(bboxes=box[:0], labels=torch.zeros(0, dtype=torch.long))
    assert not visualizer._draw_instances(np.zeros_like(image), empty, ('ship',), None).any()
    with pytest.raises(ValueError, match='five numbers, got 4'):
        flat = InstanceData(bboxes=box[:, :4], labels=torch.zeros(1, dtype=torch.long))
        visualizer._draw_instances(np.zeros_like(image), flat, ('ship',), None)


# Test-time augmentation


def view_of(boxes, scores, direction=None, size=(90, 120)):
    """Detections of one view of an image, which may be flipped."""
    seen = OrientedBoxes(boxes)
    if direction:
        seen.flip_(size, direction)
    sample = DetDataSample(
        metainfo=dict(ori_shape=size, flip=bool(direction), flip_direction=direction)
    )
    sample.pred_instances = InstanceData(
        bboxes=seen.tensor, scores=scores, labels=torch.arange(len(boxes)) % 2
    )
    sample.gt_instances = InstanceData(bboxes=seen)
    return sample


def test_views_are_turned_back_and_merged():
    boxes = torch.tensor([[30.0, 40, 20, 8, 0.5], [30, 40, 20, 8, 0.5], [80, 60, 30, 10, -0.9]])
    views = [
        view_of(boxes, torch.tensor([0.6, 0.2, 0.4]), 'horizontal'),
        view_of(boxes, torch.tensor([0.5, 0.9, 0.3])),
        view_of(boxes, torch.tensor([0.1, 0.3, 0.7]), 'vertical'),
        view_of(boxes[:0], torch.zeros(0), 'diagonal'),
    ]
    cfg = dict(nms=dict(type='nms_rotated', iou_threshold=0.1), max_per_img=10)
    detector = type('Detector', (torch.nn.Module,), dict(test_step=None))
    model = OrientedTTAModel(tta_cfg=cfg, module=detector())
    (merged,) = model.merge_preds([views])
    found = merged.pred_instances
    # Each object once, with the score of the view that is surest; classes do not suppress others.
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.7, 0.6]))
    assert found.labels.tolist() == [1, 0, 0]
    torch.testing.assert_close(found.bboxes, boxes[[1, 2, 0]], rtol=0, atol=1e-4)
    assert torch.equal(merged.gt_instances.bboxes.tensor, boxes), 'objects of a flipped view'
    model.tta_cfg['max_per_img'] = 2
    assert len(model.merge_preds([views])[0].pred_instances) == 2
    (none,) = model.merge_preds([[views[3]]])
    assert none.pred_instances.bboxes.shape == (0, 5)
    for wrong in (dict(max_per_img=9), dict(nms=dict(iou_threshold=0.1))):
        with pytest.raises(ValueError, match='tta_cfg must be like dict'):
            OrientedTTAModel(tta_cfg=wrong, module=detector())


# Configs


ORIENTED = [
    p
    for name in ('o2detr', 'ld')
    for p in sorted((Path(__file__).parents[2] / 'configs' / name).glob('*.py'))
    if name == 'o2detr' or 'oriented' in p.name
]


@pytest.mark.parametrize('path', ORIENTED, ids=lambda p: p.stem)
def test_shipped_configs_draw_and_augment_oriented_boxes(path):
    """The host's own visualizer and test-time augmentation refuse boxes of five numbers."""
    cfg = Config.fromfile(path)
    assert cfg.visualizer.type == 'mmextra.OrientedLocalVisualizer'
    assert cfg.tta_model.type == 'mmextra.OrientedTTAModel'
    assert cfg.tta_model.tta_cfg.max_per_img == cfg.model.test_cfg.max_per_img


def test_the_base_config_of_dota_runs_on_patches(dota_patches, monkeypatch):
    """The data part of a config: what training, validation and testing get, and the metric of each."""
    monkeypatch.setenv('MMEXTRA_DATA', str(dota_patches))
    cfg = Config.fromfile(Path(__file__).parents[2] / 'configs/_base_/datasets/dota.py')
    DefaultScope.get_instance('oriented', scope_name='mmdet')
    train, val, test = (
        DATASETS.build(cfg[f'{part}_dataloader'].dataset) for part in ('train', 'val', 'test')
    )
    assert train[0]['inputs'].shape == (3, 683, 1024) and len(val) == len(test) == 2
    sample = test[0]['data_samples']
    assert 'bboxes' not in sample.gt_instances and sample.img_id == 'P0__48__0___0'
    sample.pred_instances = InstanceData(
        bboxes=random_boxes(2), scores=torch.rand(2), labels=torch.zeros(2, dtype=torch.long)
    )
    cfg.test_evaluator.outfile_prefix = str(dota_patches / 'Task1')
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = test.metainfo
    evaluator.process([sample])
    assert evaluator.evaluate(1) == {}
    assert (dota_patches / 'Task1' / 'Task1.zip').is_file()


def test_oriented_gfl_trains_as_in_mmrotate():
    """From a third of the rate, where mmdet's own schedule has a thousandth; on train, measured on val."""
    for path in (p for p in ORIENTED if 'gfl' in p.name):
        cfg = Config.fromfile(path)
        for part in ('train', 'val'):
            dataset = cfg[f'{part}_dataloader'].dataset
            assert dataset.ann_file == f'{part}/annfiles/'
            assert dataset.data_prefix.img_path == f'{part}/images/'
        assert len(cfg.val_evaluator.iou_thrs) == 10
        warm_up, steps = cfg.param_scheduler
        assert (warm_up.start_factor, warm_up.end, warm_up.by_epoch) == (1 / 3, 500, False)
        assert (steps.milestones, steps.gamma) == ([8, 11], 0.1)


@pytest.fixture
def dota_patches(tmp_path):
    """Two patches in the layout of configs/_base_/datasets/dota.py."""
    for part in ('trainval', 'test'):
        for folder in ('images', 'annfiles'):
            (tmp_path / 'split_ss_dota' / part / folder).mkdir(parents=True)
        for x in (0, 20):
            name = f'split_ss_dota/{part}/{{}}/P0__48__{x}___0.{{}}'
            cv2.imwrite(
                str(tmp_path / name.format('images', 'png')), np.zeros((32, 48, 3), np.uint8)
            )
            (tmp_path / name.format('annfiles', 'txt')).write_text('\n'.join(LINES))
    return tmp_path


def test_real_patches(data_root, tmp_path):
    """Objects of real annotations: their boxes are the quadrilaterals, and evaluate to 1."""
    sample = data_root / 'dota_sample'
    data = DATASETS.build(
        dict(
            type='OrientedDOTADataset',
            ann_file=str(sample / 'labelTxt'),
            data_prefix=dict(img_path=str(sample / 'images')),
            test_mode=True,
        )
    )
    samples = []
    for i in range(len(data)):
        info = data.get_data_info(i)
        boxes = torch.tensor([o['bbox'] for o in info['instances']])
        quads = torch.tensor([o['quad'] for o in info['instances']]).reshape(-1, 4, 2)
        # Real quadrilaterals are nearly rectangles: their corners are near those of the boxes.
        assert torch.cdist(quads, oriented_corners(boxes)).amin(-1).median() < 2
        labels = torch.tensor([o['bbox_label'] for o in info['instances']])
        samples.append(sample_of(info['img_id'], boxes, boxes, labels=labels))
        samples[-1]['gt_instances']['labels'] = labels
    assert sum(len(s['pred_instances']['labels']) for s in samples) == 600
    assert evaluated(samples, classes=CLASSES)['dota/AP50'] == 1
