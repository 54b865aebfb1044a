"""What people are asked about the images of a pool, and what becomes of their answers."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hydistill_edge.errors import MissingFileError, UsageError
from hydistill_edge.images.selection import Scores, select
from hydistill_edge.images.selection_record import SelectionRecord, source_of
from hydistill_edge.images.transfer_set import TransferSet, TransferSetWriter
from hydistill_edge.review import take_decisions, write_review
from hydistill_edge.run_directory import RunDirectory, write_json

CLASSES = ("bolt", "<nut>", "washer")
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3)).astype(np.uint8)
IDS = [f"web:{number}" for number in range(12)]
# Eight bolts with a bar of 0.95, four nuts with a bar of 0.95 · 0.5 / 1.5 = 0.3167.
CONFIDENCES = [0.99, 0.98, 0.97, 0.951, 0.949, 0.90, 0.5, 0.4, 0.9, 0.8, 0.32, 0.31]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    with RunDirectory(folder):
        pass
    with TransferSetWriter(
        folder / "transfer", size=(8, 8), channels=3, classes=CLASSES, teacher_digest="0" * 64
    ) as writer:
        writer.add(
            IMAGES, np.zeros((12, 3)), origin="web", ids=IDS, licence="CC BY",
            addresses=[f"https://a.example/{number}" for number in range(12)],
        )  # fmt: skip
    rows = np.arange(12)
    scores = Scores(
        rows, np.array(CONFIDENCES, np.float32), np.array([0] * 8 + [1] * 4),
        np.zeros(12, np.float32), share=0.5, class_count=3,
    )  # fmt: skip
    record = SelectionRecord(tmp_path / "record", rows, class_names=CLASSES, groups=source_of(IDS))
    record.write(1, select(scores), scores)
    write_json(folder / "student" / "selection.json", record.audit(IDS))
    return folder


def sheet_rows(run: Path) -> list[dict[str, str]]:
    with (run / "review" / "sheet.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def fill(run: Path, **decisions: str) -> Path:
    file = run.parent / "filled.csv"
    lines = [f"web:{number[1:]},{decision}" for number, decision in decisions.items()]
    file.write_text("\n".join(["id,decision", *lines]) + "\n")
    return file


def test_queue_begins_with_the_images_nearest_to_their_bar(run: Path) -> None:
    sheet = write_review(run, count=4)
    border = [item.id for item in sheet.queue if item.why == "borderline"]
    assert set(border) == {"web:3", "web:4", "web:10", "web:11"}
    first = next(item for item in sheet.queue if item.id == "web:3")
    assert (first.class_name, first.selected, first.times) == ("bolt", True, 1)
    assert (first.address, first.licence) == ("https://a.example/3", "CC BY")
    assert first.sha256 == hashlib.sha256(IMAGES[3].tobytes()).hexdigest()


def test_queue_has_selected_images_of_the_rarest_classes(run: Path) -> None:
    rare = [item for item in write_review(run, count=1).queue if item.why == "rare class"]
    assert [item.id for item in rare][:3] == ["web:10", "web:9", "web:8"]
    assert all(item.selected for item in rare)


def test_page_is_one_file_with_the_pictures_in_it(run: Path) -> None:
    sheet = write_review(run, count=4)
    page = sheet.page.read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[0]))))
    np.testing.assert_array_equal(pixels, IMAGES[IDS.index(sheet.queue[0].id)])
    assert len(pictures) == len({item.id for item in sheet.queue})
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "&lt;nut&gt;" in page
    assert "<nut>" not in page


def test_script_of_the_page_is_the_one_that_its_policy_allows(run: Path) -> None:
    page = write_review(run).page.read_text()
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page


def test_sheet_reads_back_as_it_was_filled(run: Path) -> None:
    write_review(run, count=4)
    text = (run / "review" / "sheet.csv").read_text().replace("web:4,,", "web:4,accept,")
    (run / "review" / "sheet.csv").write_text(text)
    assert len(sheet_rows(run)) >= 4
    outcome = take_decisions(run, run / "review" / "sheet.csv")
    assert outcome.accepted == 1
    assert json.loads(outcome.file.read_text()) == {"web:4": "accept"}


def test_decided_images_are_not_asked_again(run: Path) -> None:
    take_decisions(run, fill(run, n3="accept", n4="reject"))
    sheet = write_review(run)
    assert sheet.decided == 2
    assert not {"web:3", "web:4"} & {item.id for item in sheet.queue}


def test_later_decision_replaces_the_earlier_one(run: Path) -> None:
    take_decisions(run, fill(run, n3="accept", n4="reject"))
    outcome = take_decisions(run, fill(run, n3="reject"))
    assert (outcome.accepted, outcome.rejected) == (0, 2)


def test_precision_is_of_selected_images_that_were_looked_at(run: Path) -> None:
    outcome = take_decisions(
        run, fill(run, n8="accept", n9="accept", n10="reject", n11="accept", n4="accept")
    )
    assert outcome.precision == {"bolt": None, "<nut>": pytest.approx(2 / 3), "washer": None}


def test_deleted_images_leave_the_run_and_are_listed(run: Path) -> None:
    outcome = take_decisions(run, fill(run, n3="delete", n0="accept"))
    transfer = TransferSet.open(run / "transfer")
    assert outcome.deleted == ("web:3",)
    assert "web:3" not in list(transfer.ids)
    assert outcome.exclude is not None
    digest = hashlib.sha256(IMAGES[3].tobytes()).hexdigest()
    assert outcome.exclude.read_text() == f"web:3\nsha256:{digest}\n"
    assert "web:3" not in {item.id for item in write_review(run).queue}
    again = take_decisions(run, fill(run, n1="delete"))
    assert again.deleted == ("web:1",)
    assert len(outcome.exclude.read_text().splitlines()) == 4


def test_unknown_ids_are_refused(run: Path) -> None:
    with pytest.raises(UsageError, match="knows no image web:77"):
        take_decisions(run, fill(run, n77="accept"))
    assert not (run / "review").exists()


def test_run_without_a_selection_is_refused(run: Path, tmp_path: Path) -> None:
    (run / "student" / "selection.json").unlink()
    with pytest.raises(MissingFileError, match="only method kd3 selects images"):
        write_review(run)
    with pytest.raises(MissingFileError, match="no run directory"):
        write_review(tmp_path)


def test_command_writes_the_sheet_and_reads_decisions_back(run: Path, hydistill: Any) -> None:
    answer = hydistill("review", run, "--count", 4)
    assert answer.code == 0
    assert str(run / "review" / "review.html") in answer.out
    told = hydistill("review", run, "--decisions", fill(run, n8="accept", n3="delete"))
    assert "1 accepted, 0 rejected, 1 deleted" in told.out
    assert f"training.decisions: {run / 'review' / 'decisions.json'}" in told.out
    assert "<nut>" in told.out
    assert hydistill("review", run, "--json").value["decided"] == 2
