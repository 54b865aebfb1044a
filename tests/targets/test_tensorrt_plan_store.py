"""A plan is code: only one that this machine sealed for itself is handed out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from hydistill_edge.errors import HydistillError
from hydistill_edge.targets.tensorrt.plan_store import PlanStore, default_key_file

FACTS: dict[str, str | int] = {"gpu": "Orin", "tensorrt": "10.3.0", "workspace_mib": 64}
PLAN = b"executable bytes"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "plan.key"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    path.mkdir()
    return path


@pytest.fixture
def store(folder: Path, key_file: Path) -> PlanStore:
    store = PlanStore(folder, key_file)
    store.write("a.plan", PLAN, FACTS)
    return store


def test_plan_is_read_back_when_nothing_changed(store: PlanStore) -> None:
    assert store.read("a.plan", FACTS) == PLAN


@pytest.mark.parametrize("fact", FACTS)
def test_plan_is_refused_when_a_fact_changed(store: PlanStore, fact: str) -> None:
    assert store.read("a.plan", {**FACTS, fact: "other"}) is None


@pytest.mark.parametrize("name", ["a.plan", "a.plan.seal"])
def test_plan_is_refused_when_bytes_changed(store: PlanStore, folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1] + b"!")

    assert store.read("a.plan", FACTS) is None


def test_plan_is_refused_when_it_was_sealed_on_another_machine(
    store: PlanStore, folder: Path, tmp_path: Path
) -> None:
    other = PlanStore(folder, tmp_path / "other" / "plan.key")
    other.write("b.plan", b"foreign code", FACTS)

    assert store.read("b.plan", FACTS) is None


@pytest.mark.parametrize("name", ["a.plan", "a.plan.seal"])
def test_plan_is_refused_when_a_file_is_gone(store: PlanStore, folder: Path, name: str) -> None:
    (folder / name).unlink()

    assert store.read("a.plan", FACTS) is None


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_plan_is_refused_when_others_may_write_it(
    store: PlanStore, folder: Path, mode: int
) -> None:
    (folder / "a.plan").chmod(mode)

    assert store.read("a.plan", FACTS) is None


def test_plan_is_refused_when_it_is_a_link(store: PlanStore, folder: Path) -> None:
    shutil.move(folder / "a.plan", folder / "elsewhere")
    (folder / "a.plan").symlink_to(folder / "elsewhere")

    assert store.read("a.plan", FACTS) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_plan_is_refused_when_it_belongs_to_another_user(store: PlanStore, folder: Path) -> None:
    os.chown(folder / "a.plan", 12345, 12345)

    assert store.read("a.plan", FACTS) is None


def test_key_is_private_and_kept(store: PlanStore, key_file: Path, folder: Path) -> None:
    before = key_file.read_bytes()

    store.write("b.plan", PLAN, FACTS)

    assert key_file.read_bytes() == before
    assert len(before) == 32
    assert key_file.stat().st_mode & 0o077 == 0


def test_key_that_others_can_read_is_refused(store: PlanStore, key_file: Path) -> None:
    key_file.chmod(0o644)

    assert store.read("a.plan", FACTS) is None
    with pytest.raises(HydistillError, match="permissions 644"):
        store.write("b.plan", PLAN, FACTS)


def test_write_leaves_no_other_files(store: PlanStore, folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["a.plan", "a.plan.seal"]


def test_default_key_lies_in_the_users_state_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert default_key_file() == Path("/somewhere/hydistill-edge/plan.key")

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert default_key_file() == Path("/home/ada/.local/state/hydistill-edge/plan.key")
