"""ReviewKD (configs/reviewkd): a distilled step of Faster R-CNN R18 from R50, 320x320, beside student step plus
teacher pyramid."""

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
    student, teacher = model(18), dict(config=dict(model=model(50), default_scope='mmdet'))
    found = []
    for mid_channels in (256, 64):  # as published; and with a quarter of the width to fuse in
        hook = dict(
            type='mmextra.ReviewKDHook',
            teacher=teacher,
            student_channels=[256] * 5,
            teacher_channels=[256] * 5,
            mid_channels=mid_channels,
        )
        build = partial(step_and_batch, student, hook, device=device, batch=2, size=320)
        found.append(
            Case(
                f'ReviewKD step, Faster R-CNN R18 <- R50, 320, batch 2, mid_channels {mid_channels}',
                ours=partial(build, mode='distilled'),
                yardstick=partial(build, mode='beside'),
                yardstick_name='student step + teacher pyramid (mmdet)',
                reference=partial(build, mode='plain'),
                reference_name='student step',
            )
        )
    return found
