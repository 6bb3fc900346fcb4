"""How far a student still is from its teacher on held-out images, in the terms of ReviewKD.

    python tools/heldout_hcl.py configs/reviewkd/reviewkd_resnet8_cifar10_demo.py \\
        untrained work_dirs/reviewkd_resnet8_cifar10_demo/epoch_30.pth

The config names the student, the validation set and, in its hook, the teacher. The checkpoints are
those of the distilled run: they hold the fusion beside the student. ``untrained`` stands for both
before the first step. Prints one line of JSON a checkpoint: the loss without its weight, averaged over
batches. Batch statistics are used, or an untrained network could not be measured.
"""

import argparse
import json
from statistics import mean
from typing import Sequence

import torch
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS, MODELS, init_default_scope
from mmengine.runner import Runner

import mmextra.registry  # noqa: F401  for `mmextra::` bases and safe loading
from mmextra.distill.base import ADAPTERS_KEY, Recorder, Teacher
from mmextra.distill.reviewkd import ReviewKDHook
from mmextra.engine.checkpoint import read_checkpoint, state_dict_of

UNTRAINED = 'untrained'


@torch.no_grad()
def heldout_hcl(cfg: Config, checkpoint: str, batches: int = 0) -> float:
    """The loss of one checkpoint.

    Args:
        cfg (Config): A config with a ``ReviewKDHook``.
        checkpoint (str): A path, or ``'untrained'``.
        batches (int): How many batches to take. Defaults to 0, all.

    Raises:
        ValueError: If the config has no such hook, or the checkpoint no fusion.
    """
    init_default_scope(cfg.default_scope)
    hooks = [HOOKS.build(h) for h in cfg.get('custom_hooks') or [] if 'teacher' in h]
    hook = next((h for h in hooks if isinstance(h, ReviewKDHook)), None)
    if hook is None:
        raise ValueError('the config has no ReviewKDHook among its custom_hooks')
    torch.manual_seed(0)
    model = dict(cfg.model)
    if cfg.get('data_preprocessor'):
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    student = MODELS.build(model)
    student.init_weights()
    hook.teacher = Teacher(**hook.teacher_options)
    hook.find_records(student)
    hook.teacher.records.watch(hook.teacher_records)
    hook.adapters = hook.build_adapters(student, hook.teacher.model)
    student.train(), hook.adapters.train()
    if checkpoint != UNTRAINED:
        whole = read_checkpoint(checkpoint)
        student.load_state_dict(state_dict_of(whole))
        if type(hook).__name__ not in whole.get(ADAPTERS_KEY, {}):
            raise ValueError(
                f'{checkpoint} holds no fusion beside the student: give a checkpoint of the distilled run, '
                'not a published one'
            )
        hook.adapters.load_state_dict(whole[ADAPTERS_KEY][type(hook).__name__])
    records, values = Recorder(student, 'student'), []
    records.watch(hook.student_records)
    records.arm()
    for i, data in enumerate(Runner.build_dataloader(cfg.val_dataloader)):
        if batches and i == batches:
            break
        batch = student.data_preprocessor(data, False)
        hook.teacher.see(batch['inputs'], batch['data_samples'], student.data_preprocessor)
        student.extract_feat(batch['inputs'])
        losses = hook.losses(records, hook.teacher, batch['inputs'], batch['data_samples'])
        values.append(sum(losses['loss_hcl']).item() / hook.loss_weight)
        records.clear()
    return mean(values)


def main(argv: Sequence[str] = None) -> None:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument('config', help='config with a ReviewKDHook')
    cli.add_argument('checkpoints', nargs='+', help=f'checkpoints of its run, or `{UNTRAINED}`')
    cli.add_argument('--batches', type=int, default=0, help='batches to take (default: all)')
    cli.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')
    args = cli.parse_args(argv)
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    MMLogger.get_current_instance().setLevel('WARNING')  # it would list every parameter
    for checkpoint in args.checkpoints:
        value = heldout_hcl(cfg, checkpoint, args.batches)
        print(json.dumps(dict(checkpoint=checkpoint, hcl=round(value, 4))), flush=True)


if __name__ == '__main__':
    main()
