"""Spectral norm against torch's own, and under autocast."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from hydistill_edge.synthesis.spectral_norm import spectral_norm


def pair(kind: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Linear(6, 5) if kind is nn.Linear else nn.Conv2d(3, 4, 3)
    other = copy.deepcopy(layer)
    for put_on, network in ((spectral_norm, layer), (parametrizations.spectral_norm, other)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            put_on(network, eps=1e-8)
    return layer, other


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d])
def test_weights_equal_torchs_when_both_start_alike(kind: type[nn.Module]) -> None:
    layer, other = pair(kind)
    for _ in range(3):
        assert torch.equal(layer.weight, other.weight)
    assert list(layer.state_dict()) == list(other.state_dict())


def test_gradient_equals_torchs_when_two_forwards_precede_the_backward() -> None:
    layer, other = pair(nn.Linear)
    images = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(2))
    for network in (layer, other):
        (network(images[0]).square().mean() - network(images[1]).mean()).backward()
    assert torch.equal(
        layer.parametrizations.weight.original.grad, other.parametrizations.weight.original.grad
    )


def test_largest_singular_value_is_one_when_iterated() -> None:
    layer, _ = pair(nn.Conv2d)
    for _ in range(50):
        weight = layer.weight
    assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-4)


def test_weight_stays_when_in_eval_mode() -> None:
    layer, _ = pair(nn.Linear)
    layer.eval()
    assert torch.equal(layer.weight, layer.weight)


def test_norm_is_of_float32_when_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _ = pair(nn.Linear)
    seen = []
    product = torch.mv

    def watched(matrix: Tensor, vector: Tensor) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return product(matrix, vector)

    monkeypatch.setattr(torch, "mv", watched)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.weight.dtype == torch.float32
    assert seen == [False, False, False]
