"""How far a student still is from its teacher on held-out images, in the terms of its own method.

    python tools/distill_gap.py configs/dsig/dsig_faster-rcnn_bccd_demo.py STUDENT.pth

The config names the student, the validation set and, in its hook, the teacher. Any checkpoint of
that student will do: that of a plain run says where distillation began. Prints one line of JSON:
for Dsig `edge`, the mean |A_s - A_t| over pairs of annotated boxes; for SEA `anchor` and `topo`,
the losses without their weights.
"""

import argparse
import json
from collections import defaultdict
from statistics import mean
from typing import Dict, List

import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.structures.bbox import bbox2roi
from mmengine.config import Config, DictAction
from mmengine.registry import HOOKS, MODELS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn

import mmextra.registry  # noqa: F401  for `mmextra::` bases and safe loading
from mmextra.distill.base import ADAPTERS_KEY, DistillHook, Recorder, Teacher
from mmextra.distill.dsig import InstanceGraphDistillHook, dense_extractor, edge_matrix
from mmextra.distill.sea import SEADistillHook, SemanticAlignLoss
from mmextra.engine.checkpoint import read_checkpoint, state_dict_of


def parse_args(argv=None) -> argparse.Namespace:
    cli = argparse.ArgumentParser(description='Distance of a student from its teacher')
    cli.add_argument('config', help='config with a Dsig or SEA hook')
    cli.add_argument('checkpoint', help="the student's weights")
    cli.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')
    return cli.parse_args(argv)


def annotated(loader: dict) -> dict:
    """A validation loader whose boxes are in pixels of the network's input."""
    steps = loader['dataset']['pipeline']
    annotations = [s for s in steps if s['type'].endswith('LoadAnnotations')]
    others = [s for s in steps if s not in annotations]
    loader['dataset']['pipeline'] = [others[0], *annotations, *others[1:]]
    return loader


def edge_gap(
    student: nn.Module, inputs: Tensor, own: tuple, other: tuple, boxes: List[Tensor]
) -> Dict[str, List[float]]:
    """Mean difference of the edges between the annotated boxes of each image."""
    if isinstance(student, TwoStageDetector):
        extractor = student.roi_head.bbox_roi_extractor
        extractor = extractor[0] if isinstance(extractor, nn.ModuleList) else extractor
    else:
        extractor = dense_extractor(own, inputs.shape[-2:])
    rois, counts = bbox2roi(boxes), [len(b) for b in boxes]
    pooled = [extractor(list(maps[: extractor.num_inputs]), rois) for maps in (own, other)]
    images = zip(*(nodes.split(counts) for nodes in pooled))
    return dict(
        edge=[
            (edge_matrix(s) - edge_matrix(t)).abs().mean().item() for s, t in images if len(s) > 1
        ]
    )


def align_gap(
    hook: SEADistillHook, student: Recorder, teacher: Teacher, inputs: Tensor, samples: list
) -> Dict[str, List[float]]:
    """The losses of one batch without their weights."""
    losses = SemanticAlignLoss(1.0, 1.0)(*hook.aligned(student, teacher, inputs, samples))
    return {name.removeprefix('loss_sea_'): [value.item()] for name, value in losses.items()}


@torch.no_grad()
def gap(cfg: Config, checkpoint: str) -> Dict[str, float]:
    """The distances of one student, averaged over images (Dsig) or batches (SEA)."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    student = MODELS.build(cfg.model)
    whole = read_checkpoint(checkpoint)
    student.load_state_dict(state_dict_of(whole))
    student.eval()
    hooks = [HOOKS.build(h) for h in cfg.get('custom_hooks') or [] if 'teacher' in h]
    hooks = [h for h in hooks if isinstance(h, (InstanceGraphDistillHook, SEADistillHook))]
    if not hooks:
        raise ValueError('the config has no Dsig or SEA hook among its custom_hooks')
    hook: DistillHook = hooks[0]
    teacher = Teacher(**hook.teacher_options)
    hook.check(student, teacher.model)
    teacher.records.watch(hook.teacher_records)
    hook.adapters = hook.build_adapters(student, teacher.model)
    if hook.adapters is not None:
        key = type(hook).__name__
        if key not in whole.get(ADAPTERS_KEY, {}):
            raise ValueError(
                f'{checkpoint} holds no adapters beside the student, and its features are not of the '
                "teacher's width: give a checkpoint of the distilled run, not a published one"
            )
        hook.adapters.load_state_dict(whole[ADAPTERS_KEY][key])
    records = Recorder(student, 'student')
    if isinstance(hook, SEADistillHook):
        records.watch(hook.student_records)
        records.arm()
    found = defaultdict(list)
    for data in Runner.build_dataloader(annotated(cfg.val_dataloader)):
        batch = student.data_preprocessor(data, False)
        inputs, samples = batch['inputs'], batch['data_samples']
        teacher.see(inputs, samples, student.data_preprocessor)
        own, other = student.extract_feat(inputs), teacher.features
        if isinstance(hook, SEADistillHook):
            values = align_gap(hook, records, teacher, inputs, samples)
            records.clear()
        else:
            boxes = [sample.gt_instances.bboxes for sample in samples]
            values = edge_gap(student, inputs, own, other, boxes)
        for name, several in values.items():
            found[name] += several
    return {name: mean(values) for name, values in found.items()}


def main() -> None:
    args = parse_args()
    cfg = Config.fromfile(args.config)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    print(json.dumps(gap(cfg, args.checkpoint)))


if __name__ == '__main__':
    main()
