"""The detectors that distillation must work on, small: stock mmdet configs with a ResNet-18 of an
eighth of its width and 32 channels wherever the config has 256."""

import copy
from functools import cache

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from training import coco_dataset, detection_run

from mmextra.distill.base import Recorder

SOURCES = dict(
    gfl='gfl/gfl_r50_fpn_1x_coco.py',
    retinanet='retinanet/retinanet_r50_fpn_1x_coco.py',
    fcos='fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    atss='atss/atss_r50_fpn_1x_coco.py',
    faster_rcnn='faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    mask_rcnn='mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    cascade_rcnn='cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
)
ONE_STAGE = ('gfl', 'retinanet', 'fcos', 'atss')
TWO_STAGE = ('faster_rcnn', 'mask_rcnn', 'cascade_rcnn')
SMALLER = dict(stacked_convs=1, num_convs=1, fc_out_channels=64)


@cache
def _source(name: str) -> dict:
    return get_config(f'mmdet::{SOURCES[name]}').model.to_dict()


def _shrunk(cfg, channels: int, classes: int, rois: int):
    """A copy of a config with other widths, classes and numbers of sampled boxes."""
    if isinstance(cfg, (list, tuple)):
        return [_shrunk(item, channels, classes, rois) for item in cfg]
    if not isinstance(cfg, dict):
        return channels if cfg == 256 else cfg
    cfg = {k: SMALLER.get(k, _shrunk(v, channels, classes, rois)) for k, v in cfg.items()}
    if 'num_classes' in cfg:
        cfg['num_classes'] = classes
    if cfg.get('type') == 'RandomSampler':
        cfg['num'] = rois
    if 'nms_pre' in cfg:
        cfg.update(nms_pre=100, max_per_img=50)
    return cfg


def tiny_detector(
    name: str, width: int = 8, channels: int = 32, classes: int = 6, rois: int = 32
) -> dict:
    """The config of one small detector.

    Args:
        name (str): A key of :data:`SOURCES`.
        width (int): Channels of the first stage of its ResNet-18. Defaults to 8.
        channels (int): Channels of its neck and heads. Defaults to 32.
        classes (int): Classes. Defaults to 6, those of the drawn shapes.
        rois (int): RoIs sampled in an image. Defaults to 32.
    """
    model = _shrunk(_source(name), channels, classes, rois)
    model['backbone'] = dict(
        type='ResNet',
        depth=18,
        base_channels=width,
        out_indices=(0, 1, 2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
    )
    model['neck']['in_channels'] = [width * 2**i for i in range(4)]
    return model


def build_detector(model: dict):
    """The detector of a config, in train mode."""
    return MODELS.build(ConfigDict(model, _scope_='mmdet')).train()


def tiny_run(name: str, root, work_dir, hooks: list, **student) -> Config:
    """The config of two training iterations of a small detector on drawn shapes."""
    cfg = detection_run(tiny_detector(name, **student), root, work_dir, hooks)
    masks = name == 'mask_rcnn'
    cfg.train_dataloader.dataset = coco_dataset(root, 'train', train=True, masks=masks)
    cfg.train_cfg.max_epochs = 1
    return cfg


def tiny_teacher(name: str, **model) -> dict:
    """The ``teacher`` of a hook: half as wide again as the student, with random weights."""
    model = tiny_detector(name, **{'width': 12, **model})
    return dict(config=dict(model=model, default_scope='mmdet'))


def drawn_batch(count: int = 2, objects: int = 3, size=(96, 128)) -> tuple:
    """Random images (count, 3, *size) with random boxes of 10 to 35 pixels."""
    generator = torch.Generator().manual_seed(1)
    samples = []
    for _ in range(count):
        corner = torch.rand(objects, 2, generator=generator) * 60
        extent = 10 + 25 * torch.rand(objects, 2, generator=generator)
        labels = torch.randint(0, 6, (objects,), generator=generator)
        shape = dict(img_shape=size, pad_shape=size, batch_input_shape=size)
        sample = DetDataSample(metainfo=dict(shape, scale_factor=(1.0, 1.0)))
        boxes = torch.cat([corner, corner + extent], 1)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
        sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=labels[:0])
        samples.append(sample)
    return torch.randn(count, 3, *size, generator=generator), samples


class FakeRunner:
    """As much of a runner as a hook needs to start."""

    def __init__(self, model, hook) -> None:
        self.model, self.hooks, self.param_schedulers = model, [hook], []
        self.optim_wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 0.1))


def start_hook(hook, student):
    """Start a hook on a detector, or on the detector of a config; returns the detector."""
    torch.manual_seed(0)
    model = build_detector(student) if isinstance(student, dict) else student
    hook.before_run(FakeRunner(model, hook))
    return model


def distilled(hook, model, inputs, samples) -> tuple:
    """One forward pass of the student: its own losses, the hook's, and the student's records."""
    records = Recorder(model, 'student')
    records.watch(hook.student_records)
    records.arm()
    base = model(inputs=inputs, data_samples=copy.deepcopy(samples), mode='loss')
    hook.teacher.see(inputs, samples, model.data_preprocessor)
    with torch.autocast('cpu', enabled=False):
        losses = hook.losses(records, hook.teacher, inputs, samples)
    return base, losses, records


@pytest.fixture(autouse=True)
def plain_config_dumps(monkeypatch):
    """Skip the formatting of configs, which mmengine does five times a run and which takes longer
    than the training of a small detector."""
    monkeypatch.setattr(
        'mmengine.config.config.FormatCode', lambda text, **_: (text, True), raising=False
    )
