"""Random numbers that do not depend on where a run was interrupted."""

import logging
import random
from typing import Optional

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop

from mmextra.registry import HOOKS


@HOOKS.register_module()
class SeedEachEpochHook(Hook):
    """Seed Python, numpy and torch before every epoch with ``seed + epoch``, on each process apart.

    mmengine saves no random states, so a run that draws random numbers in the main process (dropout, stochastic
    depth, random samplers) goes on differently after ``--resume``. With this hook an interrupted and resumed run
    equals an unbroken one. Data loader workers need ``persistent_workers=False``: mmengine seeds those anew
    whenever they start. Loops that count iterations have one epoch alone, so that a run resumed within it begins with
    the random numbers of its start: the hook says so in the log.

    Args:
        seed (int, optional): Defaults to None, the runner's own seed.
    """

    priority = 'VERY_HIGH'

    def __init__(self, seed: Optional[int] = None) -> None:
        self.seed = seed

    def before_train(self, runner) -> None:
        """Say where the hook is of no use."""
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            print_log(
                f'SeedEachEpochHook seeds at the start of epochs, and {type(runner.train_loop).__name__} has one '
                'alone: a resumed run will not equal an unbroken one; take an EpochBasedTrainLoop for that',
                'current',
                logging.WARNING,
            )

    def before_train_epoch(self, runner) -> None:
        """Seed for the epoch that begins."""
        seed = (runner.seed if self.seed is None else self.seed) + runner.epoch
        seed = (seed + 100003 * get_rank()) % 2**32
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
