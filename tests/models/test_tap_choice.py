"""Which layers are read when nobody names any."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydistill_edge.errors import MethodError
from hydistill_edge.models.student import Student
from hydistill_edge.models.tap_choice import default_taps
from hydistill_edge.models.taps import list_taps


def student(name: str) -> Student:
    return Student.create(
        name, classes=("a", "b"), channels=3, size=(32, 32), width=0.25 if "rn" not in name else 1.0
    )


def chosen(network: nn.Module, side: int = 8, limit: int = 27) -> tuple[str, ...]:
    taps = list_taps(network.eval(), torch.rand(1, 3, side, side))
    return default_taps(network, {tap.name: tap.shape for tap in taps}, limit=limit)


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet20", 9), ("resnet56", 27), ("resnet18", 8), ("wrn16_2", 6), ("resnet9", 2)],
)
def test_every_residual_block_is_read(name: str, count: int) -> None:
    made = student(name)
    taps = default_taps(made.network, made.tap_shapes())
    assert len(taps) == count
    assert not any("stem" in tap for tap in taps)


def test_relu_behind_is_read_when_blocks_are_pre_activated() -> None:
    made = student("wrn16_2")
    taps = default_taps(made.network, made.tap_shapes())
    assert taps[0] == "features.stage1.1.relu1"
    assert taps[-1] == "features.last.1"
    modules = dict(made.network.named_modules())
    assert all(isinstance(modules[tap], nn.ReLU) for tap in taps)


@pytest.mark.parametrize("name", ["vgg8", "convnet3", "mobilenet_v3_small", "shufflenet_v2"])
def test_other_networks_of_the_zoo_have_maps_to_read(name: str) -> None:
    made = student(name)
    shapes = made.tap_shapes()
    taps = default_taps(made.network, shapes)
    assert len(taps) >= 2
    assert all(len(shapes[tap]) == 3 and shapes[tap][1] > 1 for tap in taps)


def test_activations_are_read_when_no_block_is_known() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1)
    ).append(nn.ReLU())
    assert chosen(network) == ("1", "3")


def test_last_map_of_each_size_is_read_when_there_are_no_activations() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3))
    assert chosen(network) == ("1", "2")


def test_every_nth_up_to_the_last_is_read_when_there_are_too_many() -> None:
    network = nn.Sequential(*[nn.ReLU() for _ in range(7)])
    assert chosen(network, limit=3) == ("0", "3", "6")


def test_network_is_refused_when_it_has_no_map() -> None:
    with pytest.raises(MethodError, match="use method kd"):
        chosen(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)))
