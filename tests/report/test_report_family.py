"""The page of several students: rows, gaps, best artifacts, gates, and what is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from hydistill_edge.report import family_figures
from hydistill_edge.report.drawing import VARIABLES
from hydistill_edge.report.family_figures import score_by_cost
from hydistill_edge.report.family_page import collect_notes, render_family, sentences, write_family
from hydistill_edge.report.family_reading import read_family

HOSTILE = "<script>alert(1)</script>"


def artifact(device: str, ms: float | None, **more: Any) -> dict[str, Any]:
    latency = {"p50_ms": ms, "measured_on": "a processor", "advisory": True}
    return {
        "target": "onnxruntime", "device": device, "precision": "int8", "bytes": 24_812,
        "accuracy": 0.9, "teacher_agreement": 0.92, "gates": [], "passed": True,
        "parity": {"passed": True},
        "latency": latency if ms else {"p50_ms": None, "note": "no such device here"}, **more,
    }  # fmt: skip


def student(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "folder": f"students/{name}", "method": "kd", "devices": ["x86-vnni"],
        "arch": "zoo:resnet8", "params": 19_600, "macs": 480_000,
        "accuracy": 0.91, "accuracy_note": "", "teacher_agreement": 0.93,
        "teacher_agreement_note": "on the evaluation images", "gates": [],
        "gap_points": 2.25, "gap_error_points": 0.75, "gap_note": "on held-out images",
        "teacher_gap_points": -4.5, "teacher_gap_note": "accuracy on the evaluation images",
        "artifacts": [artifact("x86-vnni", 0.125)], "best_int8": "onnxruntime-x86-vnni-int8",
        "best_int8_note": "", "passed": True, "failure": None, **more,
    }  # fmt: skip


def summary(*students: dict[str, Any], **more: Any) -> dict[str, Any]:
    network = {"arch": "zoo:resnet20", "params": 271_000, "macs": 2_560_000}
    return {
        "name": "line", "passed": True, "teacher": network | {"accuracy": 0.955},
        "small_network": network | {"arch": "zoo:convnet3", "holdout_agreement": 0.8},
        "small_network_note": "", "students": list(students),
        "transfer": {"images": 300, "real": 100, "synthetic": 200, "bytes": 64_000},
        "wall_s": {"images": 12.0}, **more,
    }  # fmt: skip


FAILURE = {"kind": "GraphError", "message": "no such layer", "exit_code": 2}
UNBUILT = {
    **dict.fromkeys(("params", "macs", "accuracy", "teacher_agreement", "gap_points")),
    **{"gap_error_points": None, "teacher_gap_points": None, "artifacts": [], "best_int8": None},
    **{"gap_note": "not built", "passed": None, "failure": FAILURE},
}


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family_figures, "draw", lambda *_: "<svg></svg>")


def cells(html: str, name: str) -> str:
    """Return the text of a student's row in the first table."""
    found = next(
        row for row in re.findall("<tr>(.*?)</tr>", html, re.DOTALL)
        if re.search(rf'<th scope="row">(<a [^>]*>)?{name}\s*<', row)
    )  # fmt: skip
    return " ".join(re.sub("<[^>]*>", " ", found).replace("\N{NARROW NO-BREAK SPACE}", " ").split())


@pytest.mark.usefixtures("no_drawing")
def test_row_has_numbers_gaps_artifact_and_link() -> None:
    html = render_family(read_family(summary(student("camera"))))
    row = cells(html, "camera")
    for words in ("x86-vnni", "resnet8", "19.6 k", "480 k", "91.0 %", "+2.2 ± 0.75"):
        assert words in row, words
    assert "\N{MINUS SIGN}4.5 onnxruntime int8 x86-vnni 0.125 ms advisory 24.8 kB" in row
    assert row.endswith("passed")
    assert 'href="students/camera/report.html"' in html
    assert "95.5 %" in cells(html, "teacher")
    assert "convnet3" in cells(html, "small network")


@pytest.mark.usefixtures("no_drawing")
def test_student_that_was_not_built_is_told_with_its_reason_and_without_a_link() -> None:
    found = summary(student("camera"), student("gateway", **UNBUILT), passed=None)
    html = render_family(read_family(found))
    assert cells(html, "gateway").endswith("not built")
    assert "GraphError: no such layer" in html
    assert "students/gateway" not in html
    assert sentences(read_family(found))[0] == (
        "1 of 2 students were built; not built: gateway (GraphError)."
    )


def test_every_missing_value_has_its_reason_in_the_notes() -> None:
    bare = student(
        "bare", accuracy=None, accuracy_note="no labels", gap_points=None, gap_note="no hold-out",
        teacher_gap_points=None, teacher_gap_note="no labels", best_int8=None,
        best_int8_note="no int8 asked for",
    )  # fmt: skip
    slow = student("slow", artifacts=[artifact("x86-vnni", None)])
    family = read_family(summary(bare, slow, small_network=None, small_network_note="none here"))
    told = {(note.about, note.text) for note in collect_notes(family)}
    assert {
        ("small network", "none here"),
        ("bare", "accuracy: no labels"),
        ("bare", "gap to the small network: no hold-out"),
        ("bare", "gap to the teacher: no labels"),
        ("bare", "int8 artifact: no int8 asked for"),
        ("slow", "latency: no such device here"),
    } <= told


@pytest.mark.usefixtures("no_drawing")
def test_gates_that_said_no_or_were_not_judged_are_named() -> None:
    gate = {"name": "agreement on the hold-out", "passed": False}
    other = artifact("pi", None, parity={"passed": None}, passed=None)
    slow = artifact("x86-vnni", 3.0, gates=[{"name": "p90", "passed": False}], passed=False)
    family = read_family(
        summary(student("camera", gates=[gate], artifacts=[slow, other], passed=False))
    )
    assert family.students[0].failed == (
        "agreement on the hold-out",
        "p90 of onnxruntime int8 for x86-vnni",
    )
    assert family.students[0].open == ("parity of onnxruntime int8 for pi",)
    assert "A gate said no: camera." in sentences(family)
    assert "p90 of onnxruntime int8 for x86-vnni" in render_family(family)


@pytest.mark.usefixtures("no_drawing")
def test_agreement_stands_in_place_of_accuracy_without_labels() -> None:
    rows = [student(name, accuracy=None, teacher_gap_points=None) for name in ("one", "two")]
    family = read_family(summary(*rows, teacher={"arch": "zoo:resnet20", "accuracy": None}))
    assert "93.0 % like teacher" in cells(render_family(family), "one")
    assert sentences(family)[1].startswith("one decides most like the teacher, in 93.0")


@pytest.mark.usefixtures("no_drawing")
def test_page_is_made_when_the_summary_has_nothing_or_wrong_types(tmp_path: Path) -> None:
    whole = summary(student("a"))
    for found in ({}, {key: [1] for key in whole}, summary(dict.fromkeys(student("a")))):
        page = write_family(found, tmp_path / "report.html").read_text()
        assert page.rstrip().endswith("</html>")


@pytest.mark.usefixtures("no_drawing")
def test_names_are_escaped_and_the_page_loads_and_runs_nothing() -> None:
    text = json.dumps(summary(student("camera"), student("b", **UNBUILT)))
    for name in ("camera", "zoo:resnet8", "no such layer", "a processor", "x86-vnni"):
        text = text.replace(f'"{name}"', json.dumps(HOSTILE))
    html = render_family(read_family(json.loads(text)))
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert {link for link in re.findall(r'(?:href|src)="([^"]*)"', html) if "#" not in link} == {
        "data:,", "students/camera/report.html",
    }  # fmt: skip


def test_figure_has_every_network_with_a_cost_and_each_timed_artifact() -> None:
    elsewhere = artifact("x86-vnni", 9.0)
    elsewhere["latency"]["measured_on"] = "another processor"
    rows = [student("camera"), student("gateway", macs=900_000), student("cell")]
    rows[2]["artifacts"] = [elsewhere]
    svg = score_by_cost(read_family(summary(*rows, student("gone", **UNBUILT))))
    root = ElementTree.fromstring(svg.replace("xlink:", ""))
    texts = [node.text for node in root.iter() if node.tag.endswith("text")]
    assert (root.get("role"), bool(root.get("aria-label"))) == ("img", True)
    counts = {n: texts.count(n) for n in ("teacher", "camera", "gateway", "cell", "gone")}
    # Another machine's time is not compared, and what was not built has none.
    assert counts == {"teacher": 1, "camera": 2, "gateway": 2, "cell": 1, "gone": 0}
    assert not [color for color in VARIABLES if color in svg]


def test_figure_is_left_out_when_nothing_was_measured() -> None:
    assert score_by_cost(read_family(summary(student("gone", **UNBUILT)) | {"teacher": {}})) == ""
