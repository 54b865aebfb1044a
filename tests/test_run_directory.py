"""Stages are whole or absent; two builds never share a folder."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from hydistill_edge.errors import MissingFileError, NoSpaceError, RunDirectoryError
from hydistill_edge.run_directory import RunDirectory, digest_of, read_json, write_json


def _write(folder: Path) -> None:
    (folder / "result.txt").write_text("whole")


def test_stage_is_skipped_when_whole_and_unchanged(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as run:
        assert run.folder_stage("student", "inputs-1", "student", _write)
        assert not run.folder_stage("student", "inputs-1", "student", _write)
        assert run.folder_stage("student", "inputs-2", "student", _write)


def test_stage_runs_again_when_an_output_is_torn(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as run:
        run.folder_stage("student", "inputs", "student", _write)
        (run.path / "student" / "result.txt").write_text("who")
        assert run.folder_stage("student", "inputs", "student", _write)


def test_stage_runs_again_when_one_byte_of_an_output_was_altered(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as run:
        run.folder_stage("student", "inputs", "student", _write)
        (run.path / "student" / "result.txt").write_text("whale")
        assert run.folder_stage("student", "inputs", "student", _write)


def test_forgotten_stage_begins_anew_without_what_a_killed_run_left(tmp_path: Path) -> None:
    def fail(folder: Path) -> NoReturn:
        (folder / "checkpoint").write_text("step 7")
        raise KeyboardInterrupt

    seen: list[bool] = []
    with RunDirectory(tmp_path / "run") as run:
        with pytest.raises(KeyboardInterrupt):
            run.folder_stage("student", "a", "student", fail)
        run.forget("student")
        run.folder_stage(
            "student", "a", "student", lambda out: seen.append((out / "checkpoint").exists())
        )
    assert seen == [False]


def test_full_disk_while_recording_leaves_the_earlier_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunDirectory(tmp_path / "run") as run:
        run.folder_stage("student", "inputs-1", "student", _write)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(NoSpaceError):
            run.folder_stage("student", "inputs-2", "student", _write)
        assert run.is_current("student", "inputs-1")


def test_failed_stage_leaves_the_earlier_result(tmp_path: Path) -> None:
    def fail(folder: Path) -> NoReturn:
        _write(folder)
        raise RuntimeError("stopped half-way")

    with RunDirectory(tmp_path / "run") as run:
        run.folder_stage("student", "inputs-1", "student", _write)
        with pytest.raises(RuntimeError):
            run.folder_stage("student", "inputs-2", "student", fail)
        assert (run.path / "student" / "result.txt").read_text() == "whole"
        assert run.is_current("student", "inputs-1")


def test_partial_folder_is_kept_for_the_same_inputs_and_swept_for_others(tmp_path: Path) -> None:
    def fail(folder: Path) -> NoReturn:
        (folder / "checkpoint").write_text("step 7")
        raise KeyboardInterrupt

    seen: list[bool] = []
    with RunDirectory(tmp_path / "run") as run:
        with pytest.raises(KeyboardInterrupt):
            run.folder_stage("student", "a", "student", fail)
        run.folder_stage(
            "student", "a", "student", lambda out: seen.append((out / "checkpoint").exists())
        )
        run.folder_stage(
            "student", "b", "student", lambda out: seen.append((out / "checkpoint").exists())
        )
        leftovers = [path.name for path in run.path.iterdir() if "partial" in path.name]
    assert seen == [True, False]
    assert leftovers == []


def test_full_disk_is_one_error_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"old": 1})

    def full(_descriptor: int) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpaceError, match="free some space"):
        write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["value.json"]


def test_second_build_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from hydistill_edge.run_directory import RunDirectory\n"
        "from hydistill_edge.errors import RunDirectoryError\n"
        "try:\n  RunDirectory(Path(sys.argv[1])).__enter__()\n"
        "except RunDirectoryError as error: print(error)"
    )
    with RunDirectory(tmp_path / "run") as run:
        other = subprocess.run(
            [sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=True
        )
    assert "in use by another build" in other.stdout
    with RunDirectory(tmp_path / "run"):
        pass  # the lock is free again


def test_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(RunDirectoryError, match="no run directory of ours"), RunDirectory(tmp_path):
        pass


def test_folder_of_somebody_else_with_stages_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "chapter.partial").write_text("important")
    with pytest.raises(RunDirectoryError, match="no run directory of ours"), RunDirectory(tmp_path):
        pass
    assert (tmp_path / "chapter.partial").exists()


def test_folder_of_a_build_that_died_in_its_first_moment_is_taken(tmp_path: Path) -> None:
    (tmp_path / "run.lock").touch()
    with RunDirectory(tmp_path) as run:
        assert run.is_run(tmp_path)


def test_torn_record_counts_as_no_record(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as run:
        run.folder_stage("student", "inputs", "student", _write)
        (run.path / "stages" / "student.json").write_text('{"stage": "stu')
        assert not run.is_current("student", "inputs")


def test_digest_does_not_depend_on_key_order() -> None:
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_reading_a_missing_or_broken_json_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="does not exist"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_bytes(b"\xff\x00{")
    with pytest.raises(RunDirectoryError, match="not valid JSON"):
        read_json(tmp_path / "broken.json")


def test_borrowed_stage_is_a_link_and_current(tmp_path: Path) -> None:
    def make(out: Path) -> None:
        (out / "file").write_text("made")

    with RunDirectory(tmp_path / "lender") as lender:
        lender.folder_stage("images", "inputs", "transfer", make)
    with RunDirectory(tmp_path / "lender" / "students" / "one") as run:
        run.borrow("images", "transfer", tmp_path / "lender")
        run.borrow("images", "transfer", tmp_path / "lender")
        assert run.is_current("images", "inputs")
        assert (run.path / "transfer").is_symlink()
        (tmp_path / "lender" / "transfer" / "file").write_text("altered")
        assert not run.is_current("images", "inputs")


def test_borrowed_folder_is_left_alone_when_the_stage_runs_here(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "lender") as lender:
        lender.folder_stage("images", "a", "transfer", lambda out: (out / "file").touch())
    with RunDirectory(tmp_path / "run") as run:
        run.borrow("images", "transfer", tmp_path / "lender")
        assert run.folder_stage("images", "b", "transfer", lambda out: (out / "new").touch())
        assert not (run.path / "transfer").is_symlink()
    assert (tmp_path / "lender" / "transfer" / "file").exists()


def test_stage_cannot_be_borrowed_when_it_has_not_run(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as run, pytest.raises(MissingFileError, match="images"):
        run.borrow("images", "transfer", tmp_path / "lender")
