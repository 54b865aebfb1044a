"""Features without hooks are those with hooks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.plain_features import plain_features
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.models.zoo import create_network

SPEC = InputSpec(16, 16, 3, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


class Late(nn.Module):
    """A network whose `features` sees another input than the network does."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.classifier = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images * 0.5 + 1).mean(dim=(2, 3)))
        return logits


def teacher(network: nn.Module) -> Teacher:
    return Teacher.wrap(network, classes=("a", "b", "c"), spec=SPEC)


def zoo(name: str) -> nn.Module:
    return create_network(name, classes=3, channels=3, size=(16, 16), width=0.25)


@pytest.mark.parametrize("name", ["resnet8", "wrn16_2", "mobilenet_v2", "vgg8"])
def test_answer_equals_that_of_hooks_when_the_network_is_of_the_zoo(name: str) -> None:
    asked = teacher(zoo(name))
    plain = plain_features(asked)
    assert plain is not None
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    answer, hooked = plain(pixels), asked.features(pixels)
    torch.testing.assert_close(answer.logits, hooked.logits)
    torch.testing.assert_close(answer.penultimate, hooked.penultimate)
    assert torch.equal(answer.final_map, hooked.final_map)


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(Late(), id="other input"),
        pytest.param(nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), id="no part named features"),
    ],
)
def test_nothing_is_given_when_only_hooks_can_read_the_network(network: nn.Module) -> None:
    assert plain_features(teacher(network)) is None
