"""SEA: a distilled step of Faster R-CNN R18 from R50, 320x320, beside student step plus teacher
pyramid."""

from functools import partial

from benchmark_case import Case
from distill_step import step_and_batch
from mmengine.hub import get_config


def model(depth: int) -> dict:
    cfg = get_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').model
    cfg.backbone.update(depth=depth, init_cfg=None)
    cfg.neck.in_channels = [64, 128, 256, 512] if depth < 50 else [256, 512, 1024, 2048]
    return dict(cfg, _scope_='mmdet')


def cases(device: str = 'cpu'):
    hook = dict(
        type='mmextra.SEADistillHook',
        teacher=dict(config=dict(model=model(50), default_scope='mmdet')),
    )
    build = partial(step_and_batch, model(18), hook, device=device, batch=2, size=320)
    return [
        Case(
            'SEA step, Faster R-CNN R18 <- R50, 320, batch 2',
            ours=partial(build, mode='distilled'),
            yardstick=partial(build, mode='beside'),
            yardstick_name='student step + teacher pyramid (mmdet)',
            reference=partial(build, mode='plain'),
            reference_name='student step',
        )
    ]
