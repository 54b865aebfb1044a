"""Several networks that answer as one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.models.ensemble import Ensemble
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.teacher import Teacher

SPEC = InputSpec(4, 4, 1, (0.5,), (0.25,))


def network(
    seed: int, *, factor: float = 1.0, classes: tuple[str, ...] = ("a", "b", "c")
) -> Teacher:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        layers[3].weight.mul_(factor)
    return Teacher.wrap(layers[:], classes=classes, spec=SPEC)


def pixels() -> torch.Tensor:
    return torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_answer_is_the_mean_of_what_the_networks_say(average: str) -> None:
    networks = [network(1), network(2, factor=9.0)]
    logits = np.stack([one(pixels()).double().numpy() for one in networks])
    found = Ensemble(networks, average=average)(pixels())  # type: ignore[arg-type]
    if average == "logits":
        assert found.numpy() == pytest.approx(logits.mean(0), abs=1e-5)
        return
    exponents = np.exp(logits)
    expected = (exponents / exponents.sum(-1, keepdims=True)).mean(0)
    assert found.exp().numpy() == pytest.approx(expected, abs=1e-5)


def test_networks_stay_frozen_and_gradients_reach_the_pixels() -> None:
    both = Ensemble([network(1), network(2)])
    both.train()
    image = pixels().requires_grad_()
    torch.autograd.backward(both(image).square().sum())
    assert not any(module.training for module in both.modules())
    assert all(parameter.grad is None for parameter in both.parameters())
    assert image.grad is not None
    assert float(image.grad.abs().sum()) > 0


def test_ensemble_is_refused_when_classes_differ_or_nothing_is_given() -> None:
    with pytest.raises(MethodError, match="network 1 of the ensemble knows the classes a, b, d"):
        Ensemble([network(1), network(2, classes=("a", "b", "d"))])
    with pytest.raises(UsageError, match="no networks"):
        Ensemble([])
    with pytest.raises(UsageError, match='average "median"'):
        Ensemble([network(1)], average="median")  # type: ignore[arg-type]
