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


ARCH = "arch_overfitting_cifar10"
ARMS = ["baseline", "wo_dp_kd", "wo_dp", "wo_kd", "full"]


def test_architecture_overfitting_gives_every_arm_and_the_small_network(call: Call) -> None:
    found = call(ARCH, "--architectures", "vgg11_bn", "--seeds", "0", "1")
    assert list(found["results"]["vgg11_bn"]) == ARMS
    assert [entry["seed"] for entry in found["results"]["convnet3"]["small_network"]] == [0, 1]
    assert [told["images"] for told in found["sets"]] == [20, 20]
    for entries in found["results"]["vgg11_bn"].values():
        assert all(0 <= entry["test_accuracy"] <= 1 for entry in entries)


@pytest.mark.parametrize("kind", ["classes", "scores"])
def test_architecture_overfitting_reads_a_distilled_set_of_the_users(
    call: Call, tmp_path: Path, kind: str
) -> None:
    draws, file = np.random.default_rng(1), tmp_path / "mtt.npz"
    labels = np.arange(12) % 2
    scores = draws.normal(size=(12, 2)) + 3 * np.eye(2)[labels]
    images = draws.normal(size=(12, 3, 32, 32)).astype(np.float32)
    np.savez(file, images=images, labels=labels if kind == "classes" else scores)
    options = ["--set", str(file), "--zca", "--label-temperature", "0.3", "--arms", "full"]
    found = call(ARCH, *options)
    assert found["sets"][0]["zca"] is True
    assert found["sets"][0]["images"] == 12
    assert found["settings"]["full"]["label_temperature"] == 0.3
    assert set(found["results"]) == {"convnet3", "resnet18"}


def test_architecture_overfitting_takes_an_infer_set(call: Call) -> None:
    found = call(ARCH, "--set", "infer", "--arms", "full")
    assert found["sets"][0]["set"] == "infer"
    assert found["sets"][0]["images"] > 0


def test_distilled_set_is_refused_when_its_labels_do_not_fit(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mtt.npz"
    np.savez(file, images=np.zeros((4, 3, 32, 32), np.float32), labels=np.zeros(3, np.int64))
    with pytest.raises(AssertionError):
        call(ARCH, "--set", str(file))
    assert "images (4, 32, 32, 3) with labels (3,); expected" in capsys.readouterr().err


def test_whitened_images_have_a_flat_spectrum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    script, common = importlib.import_module(ARCH), importlib.import_module("common")
    noise = np.random.default_rng(0).normal(0, 40, (400, 32, 32, 3))
    smooth = noise.cumsum(axis=1)[:, :, :, :1].repeat(3, axis=3) / 4 + noise / 4 + 128
    split = common.Split(smooth.clip(0, 255).astype(np.uint8), np.zeros(400, np.int64), ("a", "b"))
    plain, white = (script.as_networks_see(split, zca=zca)(split.images) for zca in (False, True))
    spreads = [
        np.linalg.svd(x.reshape(400, -1), compute_uv=False)[:50].std() for x in (plain, white)
    ]
    assert spreads[1] < 0.2 * spreads[0]
    # By hand, in float64: (x - m) U / sqrt(s + 0.1) U^T of centred and scaled rows.
    rows = split.images.reshape(400, -1) / 255
    rows = rows - rows.mean(axis=1, keepdims=True)
    rows = rows / np.sqrt(rows.var(axis=1, ddof=1, keepdims=True) + 10 / 255**2)
    centred = rows - rows.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / 400)
    expected = centred @ (vectors / np.sqrt(values.clip(0) + 0.1)) @ vectors.T
    np.testing.assert_allclose(white.reshape(400, -1), expected, atol=2e-3)


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
            ARCH,
            ["convnet3, small_network", "resnet18, baseline", "resnet18, full"],
            id="arch_overfitting",
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
