"""Dsig (configs/dsig): a distilled step of Faster R-CNN R18 from R50, 320x320, beside student step
plus what runs of the teacher: its pyramid, and its box head on the student's RoIs."""

from functools import partial

from benchmark_case import Case
from distill_step import Step, detection_batch
from mmdet.structures.bbox import bbox2roi
from mmengine.hub import get_config


class RoIStep(Step):
    """A step whose mode ``'beside'`` runs the teacher's box head, too."""

    def forward(self, inputs, data_samples):
        if self.mode != 'beside':
            return super().forward(inputs, data_samples)
        records, teacher = self.hidden['session'].records, self.hidden['hook'].teacher
        records.arm()
        losses = self.student(inputs=inputs, data_samples=data_samples, mode='loss')
        samples = records.calls('roi_head.bbox_loss()')[0].args[1]
        records.disarm()
        teacher.see(inputs, data_samples, self.student.data_preprocessor)
        features = teacher.features
        with teacher.context() as model:
            model.roi_head._bbox_forward(features, bbox2roi([s.priors for s in samples]))
        teacher.forget()
        values = [v if isinstance(v, list) else [v] for k, v in losses.items() if 'loss' in k]
        return sum(v.sum() for several in values for v in several)


def model(depth: int) -> dict:
    cfg = get_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').model
    cfg.backbone.update(depth=depth, init_cfg=None)
    cfg.neck.in_channels = [64, 128, 256, 512] if depth < 50 else [256, 512, 1024, 2048]
    return dict(cfg, _scope_='mmdet')


def step(mode: str, device: str):
    """Module and inputs. The teacher is random, so that every background RoI is mined: the worst case."""
    teacher = dict(config=dict(model=model(50), default_scope='mmdet'))
    hook = dict(type='mmextra.InstanceGraphDistillHook', teacher=teacher)
    return RoIStep(model(18), hook, mode).to(device), detection_batch(2, 320, device)


def cases(device: str = 'cpu'):
    return [
        Case(
            'Dsig step, Faster R-CNN R18 <- R50, 320, batch 2',
            ours=partial(step, 'distilled', device),
            yardstick=partial(step, 'beside', device),
            yardstick_name='student step + teacher pyramid and box head (mmdet)',
            reference=partial(step, 'plain', device),
            reference_name='student step',
        )
    ]
