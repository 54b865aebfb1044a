"""The section of the method: arms, stages, selection, pilot, GAN, keys, and what is deployed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from hydistill_edge.report import figures, method_figures
from hydistill_edge.report.drawing import VARIABLES
from hydistill_edge.report.html import render
from hydistill_edge.report.method_data import Method
from hydistill_edge.report.reading import read_run

RunMaker = Callable[..., Path]
HOSTILE = "<script>alert(1)</script>"


def row(name: str, agreement: float, classes: tuple[str, ...]) -> dict[str, Any]:
    per_class = [{"class": c, "n": 9, "agreement": agreement} for c in classes]
    return {
        "name": name, "what": "images of it", "steps": 400, "agreement": agreement,
        "shifted_agreement": agreement - 0.1, "per_class": per_class, "worst_class": per_class[0],
    }  # fmt: skip


def documents(classes: tuple[str, ...] = ("dent", "good")) -> dict[str, Any]:
    """Return one document of every kind, by file name, with plausible numbers."""
    form = {"params": 12_000, "macs": 480_000, "holdout_agreement": 0.95}
    layers = [f"stage{n}" for n in range(1, 4)]
    epochs = [
        {
            "epoch": n, "pool": 1000, "selected": 300 + 40 * n, "teacher_share": 1 - n / 6,
            "by_threshold": n > 1, "notes": ["fallback: only 3 images pass"] if n == 1 else [],
            "per_class": [
                {"class": c, "predicted": 500, "threshold": 0.5 + 0.1 * place, "selected": 150}
                for place, c in enumerate(classes)
            ],
            "per_source": {s: {"pool": 500, "selected": 40 * n} for s in ("shop", "web")},
            "weights": {"mean": 0.81, "nearly_one": 0.2},
        }
        for n in range(1, 7)
    ]  # fmt: skip
    return {
        "student/deployment.json": {
            "head": "folded", "judged_images": 200,
            "before": form | {"backbone_params": 8000, "projector_params": 3500},
            "after": form | {"params": 9000, "holdout_agreement": 0.94},
            "fold": {"steps": 1000, "kept": "trained"},
            "projectors": [
                {"kind": "full", "factor": 2, "params": 12_000, "macs": 480_000, "used": True},
                {"kind": "pointwise", "factor": 2, "params": 8900, "macs": 90_000, "used": False},
            ],
        },
        "student/comparison.json": {
            "of": "arms", "measure": "decisions like the teacher's", "shift": "darker",
            "images": 90,
            "rows": [row(n, a, classes) for n, a in (("synthetic", 0.8), ("hybrid", 0.9))],
            "gate": {"passed": False, "gap_points": 2.0, "reasons": ["10.0 points below"]},
        },
        "student/selection.json": {"epochs": epochs},
        "student/hidfd.json": {
            "arm": "hybrid", "collected": 4500, "synthetic": 45_000, "inflation": 10,
            "real_share": 0.5, "steps": 400,
            "data_reduction": {"collected": 5000, "usual": 600_000, "share": 5000 / 600_000},
        },
        "student/keys.json": {
            "variant": "rtk", "top_k": 1, "threshold_factor": 1.0, "threshold": 0.33,
            "layers": [
                {"layer": n, "shape": [16, 8, 8], "influence": 0.2 + 0.1 * p, "chosen": p > 0,
                 "channels": None, "bytes": 4096}
                for p, n in enumerate(layers)
            ],
            "student_layers": [{"layer": "block1"}, {"layer": "block2"}],
            "attention": {"columns": "teacher layers", "mean": [[0.2, 0.3, 0.5], [0.1, 0.5, 0.4]]},
            "candidates": [{"rule": "in the widest gap", "threshold": 0.35, "layers": layers[2:]}],
            "held_out": {
                "classes": [{"class": classes[0], "images": 9, "chosen": [1, 2]}],
                "of_one_class_only": [{"layer": "stage2", "class": classes[0]}],
            },
            "bytes_per_image": {"all": 12_288, "used": 8320}, "bytes_note": "float32",
            "history": [{"epoch": n, "chosen": [0, 1, 2][n > 2 :]} for n in range(1, 7)],
            "maps": {
                "note": "where they are active", "layers": layers[1:],
                "classes": [{"class": c, "images": 9, "maps": [[[0.0, 1.0]], [[0.5, 0.2]]]}
                            for c in classes],
            },
        },
        "student/infer.json": {
            "labels": "static", "images": {"natural": 20, "compensated": 40, "trained_on": 54},
            "boundary": {"margin": 0.1, "student": {"share": 0.125, "images": 6},
                         "teacher": {"share": 0.25, "images": 6}},
            "closest_pairs": [
                {"classes": list(classes), "images": 6, "nearness": 0.2, "confused": 0.5}
            ],
            "map": {
                "classes": list(classes),
                "x": [0.0, 1.0, 3.0, 2.0, 2.5, 1.5], "y": [0.5, 2.0, 1.0, 1.5, 0.0, 0.7],
                "class": [0, 1, 1, 1, 1, 0],
                "kind": ["natural", *["compensated"] * 3, "natural", "class-specific"],
                "kinds": [{"kind": "compensated", "images": 3, "named_as_intended": 0.625,
                           "on_boundary": 0.375}],
            },
        },
        "transfer/pilot.json": {
            "kind": "strategic", "candidates": 900, "count": 100, "near_duplicates": 3,
            "notes": ["good: 40 of 50 wanted images, no more pass"],
            "per_class": [
                {"class": c, "wanted": 50, "chosen": 40, "need": {"deficit": 0.2, "gap": 0.1}}
                for c in classes
            ],
            "images": [
                {"id": f"web:{n}", "class": classes[0], "confidence": 0.9, "reason": "far away"}
                for n in range(60)
            ],
        },
    }  # fmt: skip


GAN = {
    "count": 500, "duplicates": 2, "hit": 0.93, "class_entropy": 0.97, "iterations": 2000,
    "seconds": 75.0, "note": "", "class_counts": {"dent": 240, "good": 260},
    "health": {"pixel_diversity": 0.8, "feature_diversity": 0.7},
    "coverage": {
        "per_class": [{"class": "dent", "share": 0.4}, {"class": "good", "share": 0.8}],
        "flagged": ["dent"], "missing": [], "density": 0.9, "coverage": 0.85,
    },
    "leak": {"made": 500, "near_copies": 1, "exact_copies": 0, "distance_min": 3.1,
             "usual_distance": 14.0},
}  # fmt: skip


INFER = {
    "labels": "static", "natural": 20, "privacy": "this set contains real images",
    "budget": {"ipc": 10, "natural": 9}, "logit_note": "one network decides",
    "bytes": {"natural": 20_480, "compensators": 4096, "labels": 512, "total": 25_088},
    "networks": [{"name": "teacher", "agreement": 1.0}, {"name": "1-vgg", "agreement": None}],
    "realism": {"natural": {"named_as_intended": 0.98, "bn_distance": 0.1},
                "compensated": {"named_as_intended": 0.75, "bn_distance": 0.2}},
    "coverage": {"natural": {"density": 1.1, "coverage": 0.9}, "compensated": None},
    "nearest_real": {"distance_min": 4.5, "distance_median": 9.0, "near_copies": 2},
}  # fmt: skip


def add(folder: Path, found: dict[str, Any], gan: dict[str, Any] | None = None) -> Path:
    for name, value in found.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    if gan is not None:
        manifest = json.loads((folder / "transfer/manifest.json").read_text())
        manifest["details"] = {"infer" if gan is INFER else "gan": gan}
        (folder / "transfer/manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@pytest.fixture
def method(make_run: RunMaker) -> Method:
    return read_run(add(make_run(), documents(), GAN)).method


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (figures, method_figures):
        monkeypatch.setattr(module, "draw", lambda *_: "<svg></svg>")


@pytest.mark.usefixtures("no_drawing")
def test_page_has_no_section_of_the_method_when_it_left_nothing(shared_run: Path) -> None:
    html = render(read_run(shared_run))
    assert 'id="method"' not in html
    assert 'href="#method"' not in html


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("student/deployment.json", ("its head folded", "9 k", "12 k", "not trained in this run")),
        ("student/comparison.json", ("Three arms", "80.0", "10.0 points below", "failed")),
        ("student/selection.json", ("540 of 1\N{NARROW NO-BREAK SPACE}000", "(epoch 1)", "shop")),
        ("student/hidfd.json", ("1/120 of 600", "each repeated 10 times")),
        ("student/keys.json", ("8.32", "12.3", "stage2 is above the threshold for dent alone")),
        (
            "student/infer.json",
            (
                "student 12.5",
                "20 natural, 40 compensated",
                "dent, good",
                "62.5",
                "37.5",
                "lines of two classes cross",
            ),
        ),
        ("transfer/pilot.json", ("100 of 900 candidates", "far away", "the first 50")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_page_tells_each_document_alone(
    make_run: RunMaker, name: str, told: tuple[str, ...]
) -> None:
    html = render(read_run(add(make_run(), {name: documents()[name]})))
    section = html[html.index('id="method"') : html.index('id="calibration"')]
    plain = section.replace("\N{NARROW NO-BREAK SPACE}k", " k")
    assert [words for words in told if words not in plain and words not in section] == []


@pytest.mark.usefixtures("no_drawing")
def test_page_tells_flagged_classes_and_near_copies_of_the_gan(make_run: RunMaker) -> None:
    html = render(read_run(add(make_run(), {}, GAN)))
    section = html[html.index('id="method"') : html.index('id="calibration"')]
    assert "<dt>flagged classes</dt><dd>dent</dd>" in section
    assert "1 near copies" in section


@pytest.mark.usefixtures("no_drawing")
def test_page_tells_bytes_realism_and_privacy_of_a_compensated_set(make_run: RunMaker) -> None:
    html = render(read_run(add(make_run(), {}, INFER)))
    section = html[html.index('id="method"') : html.index('id="calibration"')]
    for words in ("10 images per class, of which 9 natural", "75.0", "4.5", "one network decides"):
        assert words in section, words
    assert "this set contains real images." in section


def test_map_has_a_half_for_the_baseline_only_where_it_was_made(method: Method) -> None:
    assert method.compensated is not None
    assert method.compensated.map is not None
    both = method_figures.class_map(method.compensated)
    points = tuple(p for p in method.compensated.map.points if p[3] != "class-specific")
    one = replace(method.compensated, map=replace(method.compensated.map, points=points))
    titles = ("One tensor for all classes", "Baseline: one tensor per class")
    assert [title in both for title in titles] == [True, True]
    assert [title in method_figures.class_map(one) for title in titles] == [True, False]


def test_map_is_left_out_when_its_columns_do_not_fit(make_run: RunMaker) -> None:
    broken = documents()["student/infer.json"]
    broken["map"]["x"] = [0.0]
    found = read_run(add(make_run(), {"student/infer.json": broken})).method.compensated
    assert found is not None
    assert found.map is None
    assert method_figures.class_map(found) == ""


@pytest.mark.usefixtures("no_drawing")
def test_names_in_the_documents_are_escaped(make_run: RunMaker) -> None:
    text = json.dumps(documents((HOSTILE, "good"))).replace("stage2", HOSTILE)
    html = render(read_run(add(make_run(), json.loads(text))))
    assert HOSTILE not in html
    assert html.count("&lt;script&gt;") > 5


DRAWN: dict[str, Callable[[Any], str]] = {
    "selection": lambda m: method_figures.selection_history(m.selection),
    "coverage": lambda m: method_figures.class_coverage(m.gan),
    "influences": lambda m: method_figures.influences(m.keys),
    "attention": lambda m: method_figures.attention(m.keys),
    "class-map": lambda m: method_figures.class_map(m.compensated),
    "key-history": lambda m: method_figures.key_history(m.keys),
}


@pytest.mark.parametrize("name", DRAWN)
def test_figure_is_one_labelled_svg_in_the_colors_of_the_page(method: Method, name: str) -> None:
    svg = DRAWN[name](method)
    root = ElementTree.fromstring(svg.replace("xlink:", ""))
    assert (root.get("role"), bool(root.get("aria-label"))) == ("img", True)
    assert f'id="{name}-' in svg
    assert not [color for color in VARIABLES if color in svg]


def test_maps_are_pictures_and_what_is_none_is_left_out(method: Method, make_run: RunMaker) -> None:
    assert method.keys is not None
    assert method.keys.maps is not None
    assert [len(uris) for _, _, uris in method.keys.maps.rows] == [2, 2]
    broken = documents()["student/keys.json"]
    broken["maps"]["classes"][0]["maps"][0] = [[0.1], [0.2, 0.3]]
    found = read_run(add(make_run(), {"student/keys.json": broken})).method.keys
    assert found is not None
    assert found.maps is not None
    assert [name for name, _, _ in found.maps.rows] == ["good"]


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("name", documents())
def test_page_is_made_when_a_document_has_nothing_but_wrong_types(
    make_run: RunMaker, name: str
) -> None:
    wrong = {key: {"a": [1]} if isinstance(value, list) else [value]
             for key, value in documents()[name].items()}  # fmt: skip
    assert render(read_run(add(make_run(), {name: wrong}))).endswith("</html>")


@pytest.mark.parametrize("cut", range(1, 5))
def test_stretches_of_kept_epochs_are_half_open(cut: int) -> None:
    kept = [place < cut for place in range(4)]
    assert method_figures._stretches(kept) == [(0, cut)]
