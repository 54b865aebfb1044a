from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from hydistill_edge.errors import UsageError
from hydistill_edge.models.sizing import MAX_MAP_PX, MIN_MAP_PX, plan_strides, scaled
from hydistill_edge.models.student import Student
from hydistill_edge.models.zoo import ZOO, create_network

CLASSES = ("a", "b", "c")


def make(name: str, channels: int, side: int) -> Student:
    return Student.create(
        name, classes=CLASSES, channels=channels, size=(side, side), width=0.25, seed=1
    )


@pytest.mark.parametrize("side", [8, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ZOO)
def test_network_trains_and_comes_back_when_saved(
    name: str, channels: int, side: int, tmp_path: Path
) -> None:
    student = make(name, channels, side)
    pixels = torch.randint(0, 256, (2, channels, side, side), dtype=torch.uint8)
    student(pixels).logsumexp(dim=1).sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    student.eval().save(tmp_path)
    again = Student.load(tmp_path)
    assert torch.equal(again(pixels), student(pixels))
    assert again.count() == student.count()
    assert 0 < student.count().params < student.count().macs


@pytest.mark.parametrize("name", ZOO)
def test_final_map_is_between_the_smallest_and_largest_side_when_the_image_is_32_px(
    name: str,
) -> None:
    side = make(name, 3, 32).features(torch.rand(2, 3, 32, 32)).final_map.shape[-1]
    assert MIN_MAP_PX <= side <= MAX_MAP_PX


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_network_runs_when_the_image_is_224_px(name: str) -> None:
    student = make(name, 3, 224).eval()
    assert student(torch.rand(1, 3, 224, 224)).shape == (1, 3)
    assert student.features(torch.rand(1, 3, 224, 224)).final_map.shape[-1] == 7


@pytest.mark.parametrize("name", ZOO)
def test_no_activation_works_in_place(name: str) -> None:
    network = create_network(name, classes=2, channels=1, size=(8, 8), width=0.25)
    assert not any(getattr(module, "inplace", False) is True for module in network.modules())


@pytest.mark.parametrize("name", ZOO)
def test_width_multiplier_shrinks_the_network(name: str) -> None:
    sizes = [
        sum(
            p.numel()
            for p in create_network(name, classes=2, channels=3, size=(8, 8), width=w).parameters()
        )
        for w in (0.25, 0.5)
    ]
    assert 1.5 * sizes[0] < sizes[1]


@pytest.mark.parametrize("name", ["vgg8", "vgg11"])
def test_plain_vgg_has_no_batch_norm(name: str) -> None:
    network = create_network(name, classes=2, channels=3, size=(8, 8), width=0.25)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("resnet20", 272_474),  # 0.27 M in arXiv:1512.03385, with 1x1 shortcuts
        ("wrn16_2", 691_674),  # 0.7 M in arXiv:1605.07146
        ("mobilenet_v2", 2_236_682),  # torchvision's, 10 classes
        ("efficientnet_b0", 4_020_358),
    ],
)
def test_network_has_the_published_size_when_the_width_is_one(name: str, params: int) -> None:
    network = create_network(name, classes=10, channels=3, size=(32, 32))
    assert sum(parameter.numel() for parameter in network.parameters()) == params


def test_unknown_network_names_the_closest_and_all_known() -> None:
    with pytest.raises(UsageError, match='closest: "resnet18"') as caught:
        create_network("resnet_18", classes=2, channels=3, size=(8, 8))
    assert all(name in str(caught.value) for name in ZOO)


def test_all_values_out_of_range_are_told_together() -> None:
    with pytest.raises(UsageError, match=r"classes 1.*channels 0.*size \(4, 8\).*width 0"):
        create_network("resnet8", classes=1, channels=0, size=(4, 8), width=0)


@pytest.mark.parametrize("side", [8, 11, 16, 28, 32, 48, 64, 96, 128, 224])
def test_strides_keep_the_final_map_within_bounds(side: int) -> None:
    strides = plan_strides((side, side + 3), [1, 1, 1, 2, 2, 2], optional=2)
    assert MIN_MAP_PX <= math.ceil(side / math.prod(strides)) <= MAX_MAP_PX


def test_first_strides_go_first_unless_told_otherwise() -> None:
    assert plan_strides((16, 16), [2, 2, 2]) == [1, 2, 2]
    assert plan_strides((16, 16), [2, 2, 2], drop="last") == [2, 2, 1]


def test_scaled_channels_are_multiples_of_eight() -> None:
    assert [scaled(c, w) for c, w in ((16, 1.0), (16, 0.25), (116, 0.5), (64, 1.5))] == [
        16,
        8,
        56,
        96,
    ]
