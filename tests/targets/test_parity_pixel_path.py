"""R7 starts at the bytes of a file and ends at a decision."""

from __future__ import annotations

import pytest

from hydistill_edge.errors import ImageSourceError
from hydistill_edge.targets.parity import Golden, r7_pixel_path

GOLDEN = [Golden(f"img-{i}", bytes([i]), i % 2) for i in range(4)]


def parity_of_byte(data: bytes) -> int:
    return data[0] % 2


def test_pixel_path_passes_when_all_decisions_are_the_golden_ones() -> None:
    rung = r7_pixel_path(parity_of_byte, GOLDEN)

    assert (rung.passed, rung.n, rung.worst) == (True, 4, ())


def test_pixel_path_names_the_files_that_are_decided_otherwise() -> None:
    rung = r7_pixel_path(lambda data: 0, GOLDEN, classes=["ok", "dent"], source="real")

    assert rung.passed is False
    assert rung.gates[0].worst == "img-1"
    assert [(w.id, w.reference, w.candidate) for w in rung.worst] == [
        ("img-1", "dent", "ok"),
        ("img-3", "dent", "ok"),
    ]


@pytest.mark.parametrize("error", [ImageSourceError("torn"), OSError("torn"), ValueError("torn")])
def test_pixel_path_counts_a_file_as_wrong_when_it_cannot_be_read(error: Exception) -> None:
    def decide(data: bytes) -> int:
        raise error

    rung = r7_pixel_path(decide, GOLDEN)

    assert rung.passed is False
    assert rung.worst[0].candidate == "cannot decide: torn"


def test_pixel_path_is_not_judged_when_there_are_no_golden_files() -> None:
    assert r7_pixel_path(parity_of_byte, []).passed is None
