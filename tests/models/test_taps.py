from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydistill_edge.errors import UsageError
from hydistill_edge.models.anatomy import find_anatomy, read_features
from hydistill_edge.models.taps import check_taps, eval_mode, list_taps, reading


class Residual(nn.Module):
    """Writes into its convolution's output, as many released networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(2, 2, 1)
        self.first = nn.Conv2d(2, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images)
        output: Tensor = self.second(hidden)
        output += images
        return F.relu(output, inplace=True)


def test_taps_stand_in_order_of_execution_not_of_definition() -> None:
    names = [tap.name for tap in list_taps(Residual(), torch.rand(1, 2, 4, 4))]
    assert names == ["first", "second"]


def test_tap_is_marked_overwritten_when_a_later_operation_is_in_place() -> None:
    marks = {tap.name: tap.overwritten for tap in list_taps(Residual(), torch.rand(1, 2, 4, 4))}
    assert marks == {"first": False, "second": True}


def test_tap_keeps_its_value_when_a_later_relu_is_in_place() -> None:
    conv = nn.Conv2d(1, 2, 1)
    network = nn.Sequential(conv, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 2)).eval()
    images = torch.randn(3, 1, 2, 2)
    features = read_features(network, images, find_anatomy(network, images), ["0"])
    torch.testing.assert_close(features.taps["0"], conv(images))


def test_tap_passes_gradients_back_to_the_images() -> None:
    images = torch.rand(1, 2, 4, 4, requires_grad=True)
    network = Residual()
    with reading(network, outputs=["second"], copy={"second"}) as found:
        network(images)
    found.outputs["second"].sum().backward()
    assert images.grad is not None


def test_hooks_are_gone_when_the_forward_pass_fails() -> None:
    network = Residual()
    with pytest.raises(RuntimeError), reading(network, outputs=["first"], inputs=["second"]):
        network(torch.rand(1, 5, 4, 4))
    assert not network.first._forward_hooks
    assert not network.second._forward_pre_hooks


def test_module_that_runs_twice_stands_where_it_ran_last() -> None:
    relu = nn.ReLU()
    network = nn.Sequential(relu, nn.Conv2d(1, 1, 1), relu)
    assert [tap.name for tap in list_taps(network, torch.rand(1, 1, 2, 2))] == ["1", "0"]


def test_unknown_tap_names_the_closest_known_one() -> None:
    with pytest.raises(UsageError, match=r"closest: stage1\b"):
        check_taps(["stage_1"], ["stem", "stage1", "fc"])


def test_eval_mode_puts_each_part_back() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), nn.ReLU()).train()
    network[0].eval()
    with eval_mode(network):
        assert not network.training
    assert (network.training, network[0].training, network[1].training) == (True, False, True)
