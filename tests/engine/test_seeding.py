"""Random numbers that follow from the epoch, and where they cannot."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from mmextra.engine.seeding import SeedEachEpochHook


def draws(hook, epoch, seed=3):
    hook.before_train_epoch(SimpleNamespace(seed=seed, epoch=epoch))
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_an_epoch_has_the_same_numbers_whatever_came_before():
    hook = SeedEachEpochHook()
    first = draws(hook, 1)
    assert draws(hook, 2) != first
    assert draws(hook, 1) == first and draws(hook, 1, seed=4) != first
    assert draws(SeedEachEpochHook(seed=3), 1, seed=7) == first


@pytest.mark.parametrize('loop, warned', [(IterBasedTrainLoop, True), (EpochBasedTrainLoop, False)])
def test_loops_that_count_iterations_are_warned_about(monkeypatch, loop, warned):
    said = []
    monkeypatch.setattr('mmextra.engine.seeding.print_log', lambda text, *_: said.append(text))
    SeedEachEpochHook().before_train(SimpleNamespace(train_loop=loop.__new__(loop)))
    assert bool(said) == warned and all('IterBasedTrainLoop has one' in text for text in said)
