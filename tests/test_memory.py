"""The peak of memory that a stage's record tells."""

from __future__ import annotations

from mmap import mmap
from pathlib import Path

import numpy as np
import pytest

from hydistill_edge import memory
from hydistill_edge.run_directory import RunDirectory


def test_peak_rises_with_what_is_held_and_begins_anew() -> None:
    if memory.resident_peak_mib() is None:
        pytest.skip("this system does not tell the peak of resident memory")
    peaks = []
    for held_mib in (0, 64, 0):
        memory.begin_peak()
        with mmap(-1, (held_mib + 1) * memory.MIB) as block:  # malloc might keep what is freed
            np.frombuffer(block, np.uint8)[:] = 1
            peaks.append(memory.resident_peak_mib())
    first, high, anew = (peak or 0.0 for peak in peaks)
    assert high > first + 32
    assert anew < high - 32


def test_peak_is_none_where_the_system_does_not_tell_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "nowhere")
    memory.begin_peak()
    assert memory.resident_peak_mib() is None


def test_record_of_a_stage_has_its_peak(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as run:
        run.file_stage("a", "inputs", "a.txt", lambda: "a")
        told = run.peak_mib()["a"]
    assert set(told) == {"resident", "gpu"}
    assert told["resident"] == memory.resident_peak_mib()
