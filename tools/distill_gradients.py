"""How hard each loss of a distilled student pulls: the norm of its gradient at the start of training.

    python tools/distill_gradients.py configs/sea/sea_retinanet_bccd_demo.py --batches 4

Weights of distillation losses are best compared by these norms, not by the values of the losses. They are
those of the full weights, whatever `begin`, `end` and `warmup` say.
Prints one line of JSON: loss name -> norm of its gradient over all student parameters, averaged over
a few training batches; `distillation` is the norm of all that the hooks add together.
"""

import argparse
import json
from collections import defaultdict
from itertools import islice
from statistics import mean
from typing import Dict, List

import torch
from mmengine.config import Config, DictAction
from mmengine.runner import Runner
from torch import Tensor

import mmextra.registry  # noqa: F401  for `mmextra::` bases and safe loading
from mmextra.distill.base import DistillHook


def parse_args(argv=None) -> argparse.Namespace:
    cli = argparse.ArgumentParser(description='Gradient norm of each loss')
    cli.add_argument('config', help='config with distillation hooks')
    cli.add_argument('--batches', type=int, default=4, help='batches to average over (default: 4)')
    cli.add_argument('--work-dir', default='work_dirs/distill_gradients')
    cli.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')
    return cli.parse_args(argv)


def norm(loss: Tensor, parameters: List[Tensor]) -> float:
    """Norm of the gradient of one loss; its graph is kept."""
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.stack([g.norm() for g in grads if g is not None]).norm().item()


def gradient_norms(cfg: Config, batches: int) -> Dict[str, float]:
    """Loss name -> mean norm."""
    runner = Runner.from_cfg(cfg)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.model.init_weights()
    runner.load_or_resume()
    runner.call_hook('before_run')
    hooks = [h for h in runner.hooks if isinstance(h, DistillHook)]
    if not hooks:
        raise ValueError('the config has no distillation hook among its custom_hooks')
    model = runner.model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = defaultdict(list)
    for hook in hooks:  # at full weight, whenever that is reached
        hook.begin, hook.end, hook.warmup = 0, None, 0
    for data in islice(Runner.build_dataloader(cfg.train_dataloader), batches):
        data = model.data_preprocessor(data, True)
        own = set(model(**data, mode='loss'))
        for hook in hooks:
            hook.before_train_iter(runner, 0)
        losses = {k: v for k, v in model(**data, mode='loss').items() if 'loss' in k}
        hooks[0].after_train_iter(runner, 0)
        losses = {k: v if isinstance(v, Tensor) else sum(v) for k, v in losses.items()}
        losses['distillation'] = sum(v for k, v in losses.items() if k not in own)
        for name, loss in losses.items():
            found[name].append(norm(loss, parameters))
    return {name: mean(values) for name, values in found.items()}


def main() -> None:
    args = parse_args()
    cfg = Config.fromfile(args.config)
    cfg.work_dir = args.work_dir
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    print(json.dumps(gradient_norms(cfg, args.batches)))


if __name__ == '__main__':
    main()
