"""Every script runs through to its result on a few tiny images."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "tools" / "reproduce"

Call = Callable[..., dict[str, Any]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    draws = np.random.default_rng(0)
    for name, count in (("train", 60), ("test", 8), ("pool", 40)):
        np.savez(
            folder / f"{name}.npz",
            images=draws.integers(0, 256, (count, 32, 32, 3), np.uint8),
            labels=np.arange(count) % 2,
            class_names=np.array(["a", "b"]),
        )
    return folder


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path) -> Call:
    monkeypatch.syspath_prepend(str(FOLDER))

    def run(script: str, *options: str) -> dict[str, Any]:
        out = tmp_path / "result.json"
        places = ["--data", str(data), "--work", str(tmp_path / "work"), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", [script, *places, "--device", "cpu", "--smoke", *options])
        assert importlib.import_module(script).main() == 0
        result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return result

    return run


def test_hidfd_gives_two_rows_when_a_pool_is_given(call: Call, data: Path) -> None:
    found = call("hidfd_cifar10", "--pool", str(data / "pool.npz"))
    assert set(found["rows"]) == {"pilot", "pool-pool"}
    assert [row["candidates"] for row in found["rows"].values()] == [20, 40]
    for row in found["rows"].values():
        assert row["images"]["collected"] <= 20
        assert 0 <= row["student"]["test_accuracy"] <= 1
    assert found["projection"] is False
    assert found["test_images"] == 8


def test_kd3_names_a_small_pool_when_it_is_one(call: Call, data: Path) -> None:
    found = call("kd3_cifar10", "--pool", str(data / "pool.npz"))
    assert found["pool"]["note"].startswith("a small pool: 40 images")
    assert len(found["student"]["selected"]) == 2
    assert 0 <= found["student"]["test_accuracy"] <= 1


def test_rtk_gives_every_arm_when_there_are_several_seeds(call: Call) -> None:
    found = call("rtk_cifar100", "--seeds", "0", "1")
    assert set(found["arms"]) == {"kd", "afd", "rtk"}
    for arm in found["arms"].values():
        assert [entry["seed"] for entry in arm["seeds"]] == [0, 1]
        assert arm["std"] is not None


def test_infer_gives_a_student_for_each_kind_of_labels(call: Call) -> None:
    found = call("infer_cifar100")
    assert set(found["students"]) == {"static", "dynamic"}
    assert [network["architecture"] for network in found["networks"]] == ["resnet8", "vgg8_bn"]
    assert found["set"]["budget"]["natural"] == 2
    for student in found["students"].values():
        assert 0 <= student["test_accuracy"] <= 1


@pytest.mark.parametrize(
    ("script", "phases"),
    [
        pytest.param("hidfd_cifar10", ["teacher", "gan", "student"], id="hidfd"),
        pytest.param(
            "rtk_cifar100",
            ["teacher", "student, kd", "student, afd", "student, rtk"],
            id="rtk",
        ),
        pytest.param(
            "infer_cifar100",
            [
                *("network, resnet8", "network, vgg8_bn"),
                *("compensators, resnet8", "compensators, vgg8_bn"),
                *("student, static labels", "student, dynamic labels"),
            ],
            id="infer",
        ),
    ],
)
def test_probe_projects_every_phase_when_asked_for_steps(
    call: Call, script: str, phases: list[str]
) -> None:
    found = call(script, "--probe", "2")
    assert found["projection"] is True
    assert [phase["phase"] for phase in found["phases"]] == phases
    assert all(phase["steps_timed"] == 2 for phase in found["phases"])


def test_probe_of_kd3_counts_the_selection_when_asked_for_steps(call: Call, data: Path) -> None:
    pool = ["--pool", str(data / "pool.npz")]
    found = call("kd3_cifar10", *pool, "--probe", "2", "--probe-batch", "4")
    assert [phase["batch"] for phase in found["phases"]] == [8, 4, 4]
    names = [phase["phase"] for phase in found["phases"]]
    assert [name.split(",")[0] for name in names] == ["teacher", "selection", "student"]
    assert found["projected_total_s"] >= 0
