"""Files that are whole or absent, and weights from a seed."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from hydistill_edge.atomic import replacing, write_text
from hydistill_edge.errors import NoSpaceError
from hydistill_edge.seeding import seeded


def test_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "value.txt"
    write_text(path, "old")
    with replacing(path) as partial:
        partial.write_text("new", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == "new"
    assert [file.name for file in path.parent.iterdir()] == ["value.txt"]


def test_old_file_stays_alone_when_the_block_is_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "value.txt"
    write_text(path, "old")
    with contextlib.suppress(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("value.txt", "old")]


def test_full_disk_is_told_when_a_library_says_it_in_words(tmp_path: Path) -> None:
    with pytest.raises(NoSpaceError, match="free some space"), replacing(tmp_path / "a"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), replacing(tmp_path / "a"):
        raise PermissionError(13, "denied")


def test_weights_are_those_of_the_seed_and_the_generator_goes_on() -> None:
    before = torch.random.get_rng_state()
    with seeded(3):
        first = torch.rand(2)
    with seeded(3):
        again = torch.rand(2)
    assert torch.equal(first, again)
    assert torch.equal(torch.random.get_rng_state(), before)
