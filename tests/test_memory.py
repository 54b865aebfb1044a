"""The peak of memory that a stage's record tells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hydistill_edge import memory
from hydistill_edge.run_directory import RunDirectory


def test_peak_rises_with_what_is_held_and_begins_anew() -> None:
    before = memory.resident_peak_mib()
    if before is None:
        pytest.skip("this system does not tell the peak of resident memory")
    block = np.ones(64 * memory.MIB, np.uint8)
    high = memory.resident_peak_mib()
    assert high is not None
    assert high > 64
    del block
    memory.begin_peak()
    anew = memory.resident_peak_mib()
    assert anew is not None
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
