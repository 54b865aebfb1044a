"""What was selected, when and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hydistill_edge.errors import RunDirectoryError
from hydistill_edge.images.selection import Scores, select
from hydistill_edge.images.selection_record import SelectionRecord, source_of

IDS = [f"{source}:{number}" for source in ("good", "noise") for number in range(5)]
ROWS = np.arange(10) * 2
GOOD = [0.99, 0.98, 0.97, 0.96, 0.5]


@pytest.fixture
def record(tmp_path: Path) -> SelectionRecord:
    return SelectionRecord(
        tmp_path / "selection", ROWS, class_names=("bolt", "nut"), groups=source_of(IDS)
    )


def write(record: SelectionRecord, epoch: int, confidences: list[float]) -> None:
    scores = Scores(
        ROWS, np.array(confidences, np.float32), np.zeros(10, np.int64),
        np.linspace(0, 9, 10).astype(np.float32), share=0.5, class_count=2,
    )  # fmt: skip
    record.write(epoch, select(scores), scores)


def test_rows_of_an_epoch_come_back(record: SelectionRecord) -> None:
    write(record, 1, [*GOOD, 0.1, 0.1, 0.1, 0.1, 0.96])
    write(record, 2, [*GOOD, 0.1, 0.1, 0.1, 0.1, 0.1])
    assert record.rows(1).tolist() == [0, 2, 4, 6, 18]
    assert record.rows(2).tolist() == [0, 2, 4, 6]


def test_audit_says_what_was_selected_when_and_why(record: SelectionRecord) -> None:
    write(record, 1, [*GOOD, 0.1, 0.1, 0.1, 0.1, 0.96])
    write(record, 2, [*GOOD, 0.1, 0.1, 0.1, 0.1, 0.1])
    audit = record.audit(IDS)
    first = audit["epochs"][0]
    assert (first["epoch"], first["pool"], first["selected"]) == (1, 10, 5)
    assert first["per_source"] == {
        "good": {"pool": 5, "selected": 4},
        "noise": {"pool": 5, "selected": 1},
    }
    assert "no image of the pool is taken for the class" in first["notes"][0]
    images = {name: column[9] for name, column in audit["images"].items()}
    assert images == {
        "id": "noise:4", "row": 18, "class": 0, "confidence": 0.1, "threshold": 0.95,
        "selected": False, "first_epoch": 1, "last_epoch": 1, "times": 1,
    }  # fmt: skip


def test_spread_of_the_weights_is_told(record: SelectionRecord) -> None:
    write(record, 1, [0.99] * 10)
    spread = record.audit(IDS)["epochs"][0]["weights"]
    weights = 1 / (1 + np.exp(-np.arange(10)))
    assert spread["mean"] == pytest.approx(weights.mean(), abs=1e-6)
    assert spread["smallest"] == 0.5
    assert spread["nearly_one"] == 0.5


def test_later_epochs_are_dropped(record: SelectionRecord) -> None:
    for epoch in (1, 2, 3):
        write(record, epoch, [0.99] * 10)
    record.keep_to(1)
    assert len(record.audit(IDS)["epochs"]) == 1


def test_damaged_selection_is_told(record: SelectionRecord, tmp_path: Path) -> None:
    write(record, 1, [0.99] * 10)
    (tmp_path / "selection" / "epoch-00001.safetensors").write_bytes(b"torn")
    with pytest.raises(RunDirectoryError, match="missing or damaged"):
        record.rows(1)
