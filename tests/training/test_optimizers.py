"""Optimizers by name."""

from __future__ import annotations

import pytest
from torch import nn

from hydistill_edge.errors import UsageError
from hydistill_edge.training.optimizers import OptimizerName, create_optimizer


def small_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_leaves_out_vectors(name: OptimizerName) -> None:
    optimizer = create_optimizer(name, small_network(), learning_rate=0.1, weight_decay=0.5)
    decays = {
        p.dim() > 1: group["weight_decay"]
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert decays == {True: 0.5, False: 0.0}


def test_frozen_parameters_are_left_out() -> None:
    network = small_network()
    network[0].requires_grad_(False)
    optimizer = create_optimizer("sgd", network, learning_rate=0.1)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


def test_optimizer_is_refused_when_name_is_unknown() -> None:
    with pytest.raises(UsageError, match=r'"lion".*"sgd" or "adamw"'):
        create_optimizer("lion", small_network(), learning_rate=0.1)  # type: ignore[arg-type]


def test_optimizer_is_refused_when_all_is_frozen() -> None:
    with pytest.raises(UsageError, match="no trainable"):
        create_optimizer("sgd", small_network().requires_grad_(False), learning_rate=0.1)
