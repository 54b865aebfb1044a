"""The checkpoint file."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from hydistill_edge.errors import NoSpaceError, RunDirectoryError
from hydistill_edge.training import checkpoint as module
from hydistill_edge.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

SAVED = Checkpoint({"net.a": torch.arange(3), "net.b": torch.ones(2)}, {"step": 7, "loss": 0.1})


def test_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "new" / "c.safetensors", SAVED)
    back = read_checkpoint(tmp_path / "new" / "c.safetensors")
    assert back is not None
    assert (back.values["step"], back.values["loss"]) == (7, 0.1)
    assert back.group("net")["a"].tolist() == [0, 1, 2]


def test_checkpoint_is_none_when_there_is_no_file(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path / "c.safetensors") is None


def test_write_leaves_nothing_beside_the_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c.safetensors", SAVED)
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    tied = torch.ones(2)
    write_checkpoint(tmp_path / "c.safetensors", Checkpoint({"a": tied, "b": tied}, {}))
    assert read_checkpoint(tmp_path / "c.safetensors") is not None


@pytest.mark.parametrize("damage", [b"", b"random bytes, not a checkpoint", None])
def test_read_is_refused_when_file_is_damaged(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, SAVED)
    path.write_bytes(path.read_bytes()[:-4] if damage is None else damage)
    with pytest.raises(RunDirectoryError, match="delete it"):
        read_checkpoint(path)


def test_read_is_refused_when_version_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SCHEMA_VERSION", 99)
    write_checkpoint(tmp_path / "c.safetensors", SAVED)
    monkeypatch.undo()
    with pytest.raises(RunDirectoryError, match="version 99"):
        read_checkpoint(tmp_path / "c.safetensors")


def test_old_file_stays_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "c.safetensors"
    write_checkpoint(path, SAVED)
    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(NoSpaceError, match="free some space"):
        write_checkpoint(path, Checkpoint({}, {"step": 8}))
    back = read_checkpoint(path)
    assert back is not None
    assert back.values["step"] == 7
