"""The measures of the distillation demonstrations, on small detectors and drawn shapes."""

import pytest
import torch
from tiny_detectors import build_detector, plain_config_dumps, tiny_detector, tiny_run  # noqa: F401
from training import coco_dataset

HOOKS = dict(
    dsig=dict(type='mmextra.InstanceGraphDistillHook', roi_cls=None, roi_reg=None),
    sea=dict(type='mmextra.SEADistillHook'),
)
MEASURES = dict(dsig={'edge'}, sea={'anchor', 'topo'})


@pytest.fixture
def files(tmp_path):
    """Checkpoints of two networks of the same kind."""
    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = build_detector(tiny_detector('retinanet'))
        model.init_weights()
        paths.append(str(tmp_path / f'{seed}.pth'))
        torch.save(dict(state_dict=model.state_dict()), paths[-1])
    return paths


def config(method, root, work_dir, checkpoint, name='retinanet'):
    teacher = dict(
        config=dict(model=tiny_detector(name), default_scope='mmdet'), checkpoint=checkpoint
    )
    cfg = tiny_run(name, root, work_dir, [dict(HOOKS[method], teacher=teacher)])
    cfg.val_dataloader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=coco_dataset(root, 'val', train=False),
    )
    return cfg


@pytest.mark.parametrize('method', HOOKS)
def test_gap(tool, method, shapes_root, tmp_path, files):
    gap = tool('distill_gap.py').gap
    near = gap(config(method, shapes_root, tmp_path, files[0]), files[0])
    far = gap(config(method, shapes_root, tmp_path, files[0]), files[1])
    assert set(near) == set(far) == MEASURES[method]
    assert all(value == 0 for value in near.values())
    assert all(value > 1e-4 for value in far.values())


def test_gap_through_adapters(tool, shapes_root, tmp_path, files):
    gap = tool('distill_gap.py').gap
    cfg = config('sea', shapes_root, tmp_path, files[0])
    cfg.custom_hooks[-1].adapter = True
    with pytest.raises(ValueError, match='holds no adapters beside the student'):
        gap(cfg, files[0])
    # With adapters that change nothing, the student still equals its teacher.
    path, whole = str(tmp_path / 'distilled.pth'), torch.load(files[0], weights_only=True)
    same = {f'{i}.weight': torch.eye(32)[:, :, None, None] for i in range(5)}
    same.update({f'{i}.bias': torch.zeros(32) for i in range(5)})
    torch.save(dict(whole, mmextra_adapters=dict(SEADistillHook=same)), path)
    assert gap(cfg, path) == pytest.approx(dict(anchor=0, topo=0), abs=1e-9)


def test_gap_of_a_two_stage_detector(tool, shapes_root, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / 'faster.pth'
    torch.save(build_detector(tiny_detector('faster_rcnn')).state_dict(), path)
    cfg = config('dsig', shapes_root, tmp_path, str(path), 'faster_rcnn')
    assert tool('distill_gap.py').gap(cfg, str(path)) == dict(edge=0.0)


def test_boxes_are_resized_with_the_image(tool, shapes_root):
    dataset = coco_dataset(shapes_root, 'val', train=False)
    load, annotations, resize, *rest = dataset['pipeline']
    dataset['pipeline'] = [load, resize, annotations, *rest]
    loader = tool('distill_gap.py').annotated(dict(dataset=dataset))
    assert [s['type'] for s in loader['dataset']['pipeline'][:3]] == [
        'LoadImageFromFile',
        'LoadAnnotations',
        'Resize',
    ]


def test_gradients(tool, shapes_root, tmp_path, files):
    measure = tool('distill_gradients.py').gradient_norms
    cfg = config('sea', shapes_root, tmp_path, files[0])
    cfg.val_dataloader = None
    cfg.custom_hooks[-1].update(begin=1, warmup=3)  # full weights all the same
    norms = measure(cfg, 2)
    assert set(norms) == {
        'loss_cls',
        'loss_bbox',
        'loss_sea_anchor',
        'loss_sea_topo',
        'distillation',
    }
    assert all(value > 0 for value in norms.values())
    extra = norms['loss_sea_anchor'] + norms['loss_sea_topo']
    assert norms['distillation'] < extra < 2 * norms['distillation']
    cfg.custom_hooks = []
    cfg.experiment_name = 'no-hook'
    with pytest.raises(ValueError, match='no distillation hook'):
        measure(cfg, 1)
