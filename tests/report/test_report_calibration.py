"""The calibration section: which images, how good, which ranges, which estimator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydistill_edge.report.html import write_report


def _page(run: Path) -> str:
    return write_report(run, run / "page.html").read_text("utf-8")


def _change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def test_section_shows_score_parts_and_why_each_image_was_taken(run_copy: Path) -> None:
    choice = json.loads((run_copy / "calibration" / "choice.json").read_text("utf-8"))
    page = _page(run_copy)
    assert f"{choice['count']} images from the transfer set" in page
    assert "How good they are" in page
    for pick in choice["coverage"]["picks"][:5]:
        assert pick["id"] in page
    for layer in choice["coverage"]["layers"][:3]:
        assert layer["tensor"] in page


def test_section_marks_the_estimator_that_was_chosen(run_copy: Path) -> None:
    file = next((run_copy / "targets").glob("*-int8/calibration.json"))
    rows = [
        {"estimator": "minmax", "snr_db": 31.25, "agreement": 0.99, "mean_kl": 0.001},
        {"estimator": "entropy", "failed": "no values <at all>"},
    ]
    _change(file, selection={"estimator": "minmax", "reason": "the best", "rows": rows})
    page = _page(run_copy)
    assert "entropy" in page
    assert "no values &lt;at all&gt;" in page
    assert "31.2" in page


def test_section_tells_the_signal_on_control_images_where_there_are_any(run_copy: Path) -> None:
    file = next((run_copy / "targets").glob("*-int8/calibration.json"))
    _change(file, control={"images": 32, "signal_db": 27.25, "agreement": 0.96875})
    page = " ".join(_page(run_copy).split())
    assert "27.2 dB, 96.9 % decided like the student, of 32 images" in page
    _change(file, control=None)
    assert "on control images</dt>" not in _page(run_copy)


def test_page_is_made_without_the_calibration_files(run_copy: Path) -> None:
    for file in (run_copy / "calibration").iterdir():
        file.unlink()
    assert "</html>" in _page(run_copy)
