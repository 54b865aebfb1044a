"""The running average of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydistill_edge.errors import UsageError
from hydistill_edge.training.ema import Ema, decay_for


def one_weight(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def weight_of(network: nn.Module) -> float:
    return float(next(iter(network.state_dict().values())))


def test_update_equals_hand_computation_while_it_warms_up() -> None:
    network = one_weight(0.0)
    ema = Ema(network, decay=0.9)
    nn.init.constant_(network.weight, 1.0)
    ema.update()
    assert weight_of(ema.network) == pytest.approx(1 - 2 / 11)


def test_update_keeps_the_decay_once_warm() -> None:
    network = one_weight(1.0)
    ema = Ema(network, decay=0.5)
    ema.updates = 1000
    nn.init.constant_(network.weight, 3.0)
    ema.update()
    assert weight_of(ema.network) == pytest.approx(2.0)


def test_average_is_the_network_when_decay_is_zero() -> None:
    network = one_weight(1.0)
    ema = Ema(network, decay=0.0)
    nn.init.constant_(network.weight, 7.0)
    ema.update()
    assert weight_of(ema.network) == 7.0


def test_buffers_are_averaged_and_counters_copied() -> None:
    network = nn.BatchNorm1d(2)
    ema = Ema(network, decay=0.9)
    network(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)) + 5)
    ema.update()
    averaged = ema.network.state_dict()
    assert averaged["num_batches_tracked"] == 1
    assert 0 < averaged["running_mean"][0] < network.state_dict()["running_mean"][0]


def test_average_follows_a_buffer_when_a_layer_replaces_it() -> None:
    network = nn.BatchNorm1d(2)
    ema = Ema(network, decay=0.0)
    network.running_mean = torch.full((2,), 5.0)
    ema.update()
    assert ema.network.state_dict()["running_mean"].tolist() == [5.0, 5.0]


def test_average_is_frozen_and_in_eval_mode() -> None:
    ema = Ema(nn.BatchNorm1d(2), decay=0.9)
    assert not ema.network.training
    assert not any(p.requires_grad for p in ema.network.parameters())


@pytest.mark.parametrize(
    ("steps", "share", "decay"), [(1000, 0.02, 0.95), (10, 0.02, 0.0), (1000, 0.0, 0.0)]
)
def test_decay_reaches_over_the_share_of_steps(steps: int, share: float, decay: float) -> None:
    assert decay_for(steps=steps, share=share) == pytest.approx(decay)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_ema_is_refused_when_decay_is_out_of_range(decay: float) -> None:
    with pytest.raises(UsageError, match="decay"):
        Ema(one_weight(0.0), decay=decay)
