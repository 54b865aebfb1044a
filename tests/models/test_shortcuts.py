"""Shortcuts that pool."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hydistill_edge.errors import UsageError
from hydistill_edge.models.resnets import BasicBlock, Bottleneck, PreActBlock
from hydistill_edge.models.shortcuts import pool_shortcuts
from hydistill_edge.models.student import Student
from hydistill_edge.models.zoo import HAVE_SHORTCUTS, create_network

PIXELS = torch.rand(2, 3, 16, 16)


def student(name: str) -> Student:
    return Student.create(name, classes=("a", "b"), channels=3, size=(16, 16), width=0.25, seed=1)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck, PreActBlock])
def test_shortcut_sees_all_positions_when_it_pools(block: type[nn.Module]) -> None:
    seen = {}
    for kind in ("conv", "pool"):
        made = block(4, 8, 2, kind).eval()
        images = torch.rand(1, 4, 8, 8, requires_grad=True)
        made.shortcut(images).sum().backward()  # type: ignore[operator]
        assert images.grad is not None
        seen[kind] = (images.grad.abs().sum(dim=1) > 0).float().mean().item()
    assert seen["conv"] == 0.25
    assert seen["pool"] > 0.4  # of each window, each channel its largest


def test_shortcut_pools_by_its_stride_only() -> None:
    assert [type(layer).__name__ for layer in BasicBlock(4, 8, 2, "pool").shortcut] == [
        "Pool", "Conv2d", "BatchNorm2d"
    ]  # fmt: skip
    assert len(BasicBlock(4, 8, 1, "pool").shortcut) == 2  # type: ignore[arg-type]
    assert isinstance(BasicBlock(8, 8, 1, "pool").shortcut, nn.Identity)


@pytest.mark.parametrize("name", HAVE_SHORTCUTS)
def test_weights_are_taken_over_when_shortcuts_become_pooling(name: str) -> None:
    plain = student(name)
    pooled = pool_shortcuts(plain)
    for one, two in zip(plain.parameters(), pooled.parameters(), strict=True):
        assert torch.equal(one, two)
    assert pooled.count().params == plain.count().params
    assert not torch.equal(pooled(PIXELS), plain(PIXELS))


def test_student_with_pooling_shortcuts_comes_back_when_saved(tmp_path: Path) -> None:
    pooled = pool_shortcuts(student("resnet8")).eval()
    pooled.save(tmp_path)
    again = Student.load(tmp_path)
    assert again.options == {"shortcut": "pool"}
    assert torch.equal(again(PIXELS), pooled(PIXELS))


@pytest.mark.parametrize("name", ["vgg8", "mobilenet_v2", "resnet9"])
def test_student_is_left_alone_when_it_has_no_such_shortcuts(name: str) -> None:
    plain = student(name)
    assert pool_shortcuts(plain) is plain


def test_student_is_left_alone_when_its_shortcuts_pool_already() -> None:
    pooled = pool_shortcuts(student("resnet8"))
    assert pool_shortcuts(pooled) is pooled


@pytest.mark.parametrize(
    ("name", "shortcut", "says"),
    [("vgg8", "pool", "shortcut pool: expected one of resnet8"), ("resnet8", "max", '"max"')],
)
def test_shortcut_is_refused_when_the_network_has_none(name: str, shortcut: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        create_network(name, classes=2, channels=3, size=(8, 8), shortcut=shortcut)  # type: ignore[arg-type]
