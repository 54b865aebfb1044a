from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hydistill_edge.report import figures
from hydistill_edge.report.html import render, write_report
from hydistill_edge.report.reading import read_run

RunMaker = Callable[..., Path]

SECTIONS = (
    *("summary", "accuracy", "training", "images", "calibration"),
    *("parity", "latency", "sizes", "notes", "provenance"),
)
VOID = {"meta", "link", "img", "br", "hr", "input"}
SVG_EMPTY = {"path", "use", "rect"}
HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Collects what a test asks of a page: tags, ids, addresses, and whether tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)


@pytest.fixture(scope="module")
def html(shared_run: Path) -> str:
    return render(read_run(shared_run))


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures empty: they have tests of their own, and take their time."""
    monkeypatch.setattr(figures, "draw", lambda *_: "<svg></svg>")


def test_report_is_written_whole_with_every_section(make_run: RunMaker) -> None:
    folder = make_run()

    path = write_report(folder)

    page = Page(path.read_text(encoding="utf-8"))
    assert path == folder / "report.html"
    assert not list(folder.glob("*.partial"))
    assert (page.open, page.unbalanced) == ([], [])
    assert set(SECTIONS) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_report_loads_nothing_and_runs_nothing(html: str) -> None:
    page = Page(html)
    assert "script" not in page.tags
    assert page.handlers == []
    assert [a for a in page.addresses if not a.startswith(("#", "data:"))] == []
    assert not re.search(r"@import|url\((?!#)", html)


def test_report_is_the_same_when_made_again_elsewhere(
    html: str, shared_run: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(shared_run, tmp_path / "elsewhere")

    assert render(read_run(copy)) == html


def test_everything_that_a_user_names_is_escaped(make_run: RunMaker) -> None:
    folder = make_run(classes=[HOSTILE, *"123456789"], name=HOSTILE)
    for path in [
        *folder.rglob("parity.json"),
        *folder.rglob("latency.json"),
        folder / "summary.json",
    ]:
        text = path.read_text(encoding="utf-8")
        for harmless in (
            "synthetic-00000",
            "no such device here",
            "made-up CPU",
            "resnet8",
            "u8s8-",
        ):
            text = text.replace(harmless, HOSTILE)
        path.write_text(text, encoding="utf-8")
    (folder / "recipe.yaml").write_text(f"name: {HOSTILE}\n", encoding="utf-8")

    html = render(read_run(folder))

    page = Page(html)
    assert HOSTILE.replace("<", "&lt;").replace(">", "&gt;") in html
    assert "script" not in page.tags
    assert (page.open, page.unbalanced, page.handlers) == ([], [], [])


def test_quotes_in_a_class_name_do_not_leave_their_attribute(make_run: RunMaker) -> None:
    html = render(read_run(make_run(classes=['" onload="alert(1)', *"123456789"])))

    assert Page(html).handlers == []


@pytest.mark.usefixtures("no_drawing")
def test_characters_that_html_forbids_are_replaced(make_run: RunMaker) -> None:
    html = render(read_run(make_run(classes=["a\x00b\ud800", *"123456789"])))

    assert "\x00" not in html
    assert html.encode("utf-8")


FILES = (
    *("summary.json", "teacher.json", "environment.json", "evaluation.json", "recipe.yaml"),
    *("preview.npz", "transfer/manifest.json", "student/history.json"),
    *("targets", "targets/openvino-x86-vnni-int8/parity.json"),
    *(
        "targets/openvino-x86-vnni-int8/latency.json",
        "targets/openvino-x86-vnni-int8/calibration.json",
    ),
)


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("missing", FILES)
def test_report_is_made_when_a_file_is_missing(make_run: RunMaker, missing: str) -> None:
    folder = make_run()
    gone = folder / missing
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()

    page = Page(render(read_run(folder)))

    assert set(SECTIONS) <= set(page.ids)
    assert (page.open, page.unbalanced) == ([], [])


def test_report_is_made_of_one_file_alone(tmp_path: Path) -> None:
    (tmp_path / "teacher.json").write_text(json.dumps({"arch": "resnet20"}), encoding="utf-8")

    html = render(read_run(tmp_path))

    assert "not judged" in html
    assert "No artifact was built in this run." in html


def test_notes_tell_what_was_simulated_advisory_or_unjudged(html: str) -> None:
    notes = html[html.index('id="notes"') : html.index('id="provenance"')]
    for told in (
        "simulated by onnxruntime",
        "latency is advisory",
        "no such device here",
        "R4 (real)",
    ):
        assert told in notes


@pytest.mark.usefixtures("no_drawing")
def test_gates_are_unfolded_when_one_failed(make_run: RunMaker) -> None:
    folder = make_run()
    path = folder / "targets/onnxruntime-x86-vnni-int8/parity.json"
    assert "<details open>" not in render(read_run(folder))
    parity = json.loads(path.read_text(encoding="utf-8"))
    parity["rungs"][1]["gates"][0]["passed"] = parity["rungs"][1]["passed"] = False
    path.write_text(json.dumps(parity), encoding="utf-8")

    assert render(read_run(folder)).count("<details open>") == 1


@pytest.mark.usefixtures("no_drawing")
def test_report_goes_where_it_is_asked_to(make_run: RunMaker, tmp_path: Path) -> None:
    assert (
        write_report(make_run(), tmp_path / "page.html").read_text().startswith("<!doctype html>")
    )
