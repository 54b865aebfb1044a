from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hydistill_edge.report import figures
from hydistill_edge.report.data import Run, Score
from hydistill_edge.report.drawing import VARIABLES
from hydistill_edge.report.reading import read_run
from hydistill_edge.report.wording import milliseconds

DRAWN = {
    "training": figures.training_curves,
    "classes": lambda run: figures.per_class_accuracy(run.scores),
    "confusion": lambda run: figures.confusion(run.scores[0], "confusion-0"),
    "noise": lambda run: figures.parity_noise(run.artifacts[0]),
    "latency": lambda run: figures.latency_distribution(run.artifacts[0]),
    "sizes": figures.sizes,
    "wall": figures.wall_time,
}


@pytest.fixture(scope="module")
def run(shared_run: Path) -> Run:
    return read_run(shared_run)


@pytest.mark.parametrize("name", DRAWN)
def test_figure_is_one_labelled_svg_in_the_colors_of_the_page(run: Run, name: str) -> None:
    svg = DRAWN[name](run)

    root = ElementTree.fromstring(svg.replace("xlink:", ""))
    assert (root.get("role"), bool(root.get("aria-label"))) == ("img", True)
    assert "var(--" in svg
    assert not [color for color in VARIABLES if color in svg]
    assert not re.search(r"https?:", svg.replace("http://www.w3.org/2000/svg", ""))


def test_ids_are_unique_when_all_figures_stand_on_one_page(run: Run) -> None:
    page = "".join(draw(run) for draw in DRAWN.values())

    ids = re.findall(r'\bid="([^"]+)"', page)
    used = re.findall(r'(?:url\(#|href="#)([^)"]+)', page)
    assert len(ids) == len(set(ids))
    assert set(used) <= set(ids)


def test_figures_are_empty_when_nothing_was_measured(run: Run) -> None:
    blank = dataclasses.replace(run, history=(), scores=(), wall_s={})
    bare = dataclasses.replace(run.artifacts[0], parity=None, latency=None)

    assert figures.training_curves(blank) == ""
    assert figures.per_class_accuracy(blank.scores) == ""
    assert figures.wall_time(blank) == ""
    assert figures.parity_noise(bare) == ""
    assert figures.latency_distribution(bare) == ""


def test_percentiles_are_marked_with_their_values(run: Run) -> None:
    frame = run.artifacts[0].latency.scopes[1]

    svg = DRAWN["latency"](run)

    assert "frame scope" in svg
    for name in ("p50", "p90", "p99"):
        assert f"{name} {milliseconds(frame.times[name])}" in svg


@pytest.mark.parametrize(
    "name",
    ["$\\frac{1}{0}$", "_hidden", "<script>", "\N{CJK UNIFIED IDEOGRAPH-7F3A}", "a\x00b", "x" * 99],
)
def test_class_name_is_drawn_as_text_when_it_is_strange(run: Run, name: str) -> None:
    first = run.scores[0]
    rows = ((name, *first.per_class[0][1:]), *first.per_class[1:])
    odd = dataclasses.replace(first, per_class=rows)

    for svg in (figures.per_class_accuracy([odd]), figures.confusion(odd, "c")):
        assert "<script" not in svg
        assert "\x00" not in svg
        assert name[:12].replace("<", "&lt;").replace(">", "&gt;").replace("\x00", "�") in svg


def test_confusion_is_left_out_when_the_matrix_is_torn_or_huge(run: Run) -> None:
    torn = dataclasses.replace(run.scores[0], confusion=((1.0, 0.0), (1.0,)))
    size = figures.MAX_CONFUSION + 1
    huge = dataclasses.replace(run.scores[0], confusion=((1.0,) * size,) * size)

    assert figures.confusion(torn, "c") == figures.confusion(huge, "c") == ""


def test_worst_classes_are_kept_when_there_are_too_many() -> None:
    many = figures.MAX_CLASSES + 10
    rows = tuple((f"class {n:03d}", 10.0, n / many) for n in range(many))
    score = Score("student", 0.5, rows, (), None, "", None, None)

    svg = figures.per_class_accuracy([score])

    assert "class 000" in svg
    assert f"class {many - 1:03d}" not in svg
