from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from hydistill_edge.errors import MissingFileError, UsageError

FOLDER = Path(__file__).parents[2] / "tools" / "reproduce"


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("common")


def write_split(path: Path, count: int, *, first: int = 0) -> None:
    images = np.full((count, 32, 32, 3), first, np.uint8)
    labels = np.arange(first, first + count) % 2
    np.savez(path, images=images, labels=labels, class_names=np.array(["a", "b"]))


def test_split_is_joined_when_it_lies_in_parts(common: ModuleType, tmp_path: Path) -> None:
    write_split(tmp_path / "train-0.npz", 3)
    write_split(tmp_path / "train-1.npz", 2, first=3)
    split = common.read_split(tmp_path, "CIFAR10", train=True)
    assert split.labels.tolist() == [0, 1, 0, 1, 0]
    assert split.images[:, 0, 0, 0].tolist() == [0, 0, 0, 3, 3]
    assert split.class_names == ("a", "b")


def test_split_names_what_is_expected_when_the_folder_is_empty(
    common: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(MissingFileError, match=r"test\.npz.*cifar-100-python.*downloaded"):
        common.read_split(tmp_path, "CIFAR100", train=False)


def test_split_is_refused_when_it_has_no_labels(common: ModuleType, tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", images=np.zeros((2, 32, 32, 3), np.uint8))
    with pytest.raises(UsageError, match="no labels"):
        common.read_split(tmp_path, "CIFAR10", train=True)


def test_pool_is_resized_when_its_images_are_of_another_size(
    common: ModuleType, tmp_path: Path
) -> None:
    np.savez(tmp_path / "pool.npz", images=np.full((3, 64, 64), 7, np.uint8))
    pool = common.read_pool(tmp_path / "pool.npz", size=(32, 32))
    assert pool.shape == (3, 32, 32, 3)
    assert (pool == 7).all()


def test_hold_out_takes_as_many_of_each_class_when_classes_differ_in_size(
    common: ModuleType,
) -> None:
    labels = np.array([0] * 20 + [1] * 5)
    keep, held = common.hold_out(labels, 6, seed=0)
    assert np.bincount(labels[held]).tolist() == [3, 3]
    assert sorted([*keep, *held]) == list(range(25))


def test_part_is_not_made_again_when_it_is_done(common: ModuleType, tmp_path: Path) -> None:
    calls = []
    for _ in range(2):
        work = common.Work(tmp_path / "work", {"seed": 0})
        found = work.part("teacher", lambda folder: calls.append(folder) or {"seconds": 3})
    assert found == {"seconds": 3}
    assert calls == [tmp_path / "work" / "teacher"]


def test_work_is_refused_when_it_is_of_another_run(common: ModuleType, tmp_path: Path) -> None:
    common.Work(tmp_path, {"seed": 0, "schedule": "fast"})
    with pytest.raises(UsageError, match="another seed"):
        common.Work(tmp_path, {"seed": 1, "schedule": "fast"})


def test_piece_stops_what_runs_when_its_minutes_are_up(common: ModuleType) -> None:
    with pytest.raises(common.PieceOver), common.piece(0.05 / 60):
        time.sleep(5)


def test_script_says_run_again_when_its_minutes_are_up(
    common: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--data", "d", "--work", "w", "--minutes", "0.001"])
    parser = common.arguments("words", dataset="CIFAR-10")
    code = common.run_script(lambda given: time.sleep(5), parser)
    assert code == common.UNFINISHED
    assert "run the same command again" in capsys.readouterr().err


def test_training_is_timed_behind_its_first_report_when_it_is_probed(
    common: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))

    def start(progress: Callable[..., None], total: int) -> None:
        for done in range(2, total + 1, 2):
            progress(done, total, {})

    phase = common.time_training("a", start, steps=20, batch=4, planned_steps=100)
    assert (phase.steps, phase.seconds) == (20, 10)
    assert phase.projected_s(torch.device("cuda")) == 50


@pytest.mark.parametrize(
    ("device", "total"), [pytest.param("cuda", 20 + 2, id="wall"), pytest.param("cpu", 15 + 2)]
)
def test_projection_multiplies_each_phase_by_its_planned_steps(
    common: ModuleType, monkeypatch: pytest.MonkeyPatch, device: str, total: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    phases = [common.Phase("a", 10, 2.0, 1.5, 64, 100), common.Phase("b", 4, 1.0, 1.0, 8, 8)]
    found = common.projection(phases, torch.device(device))
    assert found["projection"] is True
    assert found["projected_total_s"] == total
    assert [phase["steps_per_s"] for phase in found["phases"]] == [5.0, 4.0]


def test_result_name_says_schedule_probe_and_device(common: ModuleType) -> None:
    given = argparse.Namespace(out=None, device="cpu", probe=200, fast=True, smoke=False)
    assert common.result_path(given, "kd3_cifar10").name == "kd3_cifar10-fast-probe-cpu.json"
