"""Optimizers by name."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from hydistill_edge.errors import UsageError
from hydistill_edge.training.optimizers import (
    Lion,
    OptimizerName,
    create_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
)


def small_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion"])
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
    with pytest.raises(UsageError, match=r'"adam".*"sgd", "adamw" or "lion"'):
        create_optimizer("adam", small_network(), learning_rate=0.1)  # type: ignore[arg-type]


def test_optimizer_is_refused_when_all_is_frozen() -> None:
    with pytest.raises(UsageError, match="no trainable"):
        create_optimizer("sgd", small_network().requires_grad_(False), learning_rate=0.1)


def test_lion_equals_three_steps_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = Lion([weight], lr=0.1, betas=(0.5, 0.9), weight_decay=0.2)
    found = []
    for gradient in (2.0, -0.3, 0.0):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        found.append(weight.item())
    # m = 0:     blend 0.5 * 0 + 0.5 * 2 = 1 > 0;              m = 0.1 * 2 = 0.2
    # m = 0.2:   blend 0.5 * 0.2 + 0.5 * -0.3 = -0.05 < 0;     m = 0.9 * 0.2 - 0.1 * 0.3 = 0.15
    # m = 0.15:  blend 0.5 * 0.15 > 0
    first = 1.0 * (1 - 0.1 * 0.2) - 0.1
    second = first * 0.98 + 0.1
    assert found == pytest.approx([first, second, second * 0.98 - 0.1], abs=1e-12)
    assert optimizer.state[weight]["momentum"].item() == pytest.approx(0.135)


def test_lion_equals_an_independent_reference() -> None:
    choice = np.random.default_rng(0)
    start, gradients = choice.normal(size=(3, 4)), choice.normal(size=(20, 3, 4))
    rates = np.linspace(1e-3, 1e-2, 20)
    weight = nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = Lion([weight], lr=1.0, weight_decay=0.3)
    expected, momentum = start.copy(), np.zeros_like(start)
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.from_numpy(gradient)
        optimizer.step()
        blend = 0.95 * momentum + 0.05 * gradient
        expected = expected - rate * 0.3 * expected - rate * np.sign(blend)
        momentum = 0.98 * momentum + 0.02 * gradient
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=0, atol=1e-12)


def test_lion_goes_on_alike_when_its_state_was_saved() -> None:
    network, inputs = small_network(), torch.ones(2, 1, 3, 3)
    optimizer = create_optimizer("lion", network, learning_rate=0.01)

    def step(trained: nn.Module, by: torch.optim.Optimizer) -> None:
        by.zero_grad()
        trained.eval()(inputs).square().sum().backward()
        by.step()

    step(network, optimizer)
    other = copy.deepcopy(network)
    again = create_optimizer("lion", other, learning_rate=0.01)
    load_optimizer_tensors(again, optimizer_tensors(optimizer))
    step(network, optimizer)
    step(other, again)
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_lion_leaves_a_weight_alone_when_it_has_no_gradient() -> None:
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    used.grad = torch.ones(2, 2)
    Lion([used, unused], lr=0.1).step()
    assert torch.equal(unused, torch.ones(2, 2))
    assert not torch.equal(used, torch.ones(2, 2))


def test_lion_is_refused_when_a_beta_is_one() -> None:
    with pytest.raises(UsageError, match=r"betas \(0.9, 1.0\)"):
        Lion([nn.Parameter(torch.ones(1))], lr=0.1, betas=(0.9, 1.0))


@pytest.mark.parametrize(
    ("name", "momentum", "first"),
    [("sgd", None, 0.9), ("adamw", None, 0.9), ("lion", None, 0.95), ("lion", 0.8, 0.8)],
)
def test_momentum_is_the_optimizers_own_unless_given(
    name: OptimizerName, momentum: float | None, first: float
) -> None:
    optimizer = create_optimizer(name, small_network(), learning_rate=0.1, momentum=momentum)
    group = optimizer.param_groups[0]
    assert (group["momentum"] if name == "sgd" else group["betas"][0]) == first
