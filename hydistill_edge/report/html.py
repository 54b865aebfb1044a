"""The report page: one self-contained HTML file, without script and without any outside address."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hydistill_edge import __version__
from hydistill_edge.atomic import write_text
from hydistill_edge.report import figures, method_figures, wording
from hydistill_edge.report.calibration_data import CalibrationSet, Quality
from hydistill_edge.report.calibration_figures import MAX_RANGES, range_comparison
from hydistill_edge.report.data import Artifact, Run, Rung, Score
from hydistill_edge.report.decision import decide, headline_latency
from hydistill_edge.report.drawing import SERIES
from hydistill_edge.report.method_data import Method
from hydistill_edge.report.reading import read_run

REPORT = "report.html"
RUNGS = ("R0", "R1", "R2", "R3", "R4", "R5", "R6", "R7")
MAX_CONFUSED = 8  # rows of the table of confused pairs
MAX_CLASS_COUNTS = 40  # classes that are listed one by one
MAX_SEEN_IMAGES = 50  # evaluation images that the transfer set holds too
MAX_PICKS = 50  # calibration images whose reason is shown
FEW_LAYERS = 12  # tables of so many layers stand open

PART_NAMES = {
    "signal": "signal on real images",
    "bn_distance": "BatchNorm distance",
    "coverage": "range covered",
    "resolution": "resolution used",
    "tail": "tails kept",
    "balance": "class balance",
}


@dataclass(frozen=True)
class Note:
    """One thing that a reader must know about an artifact, a student or the run."""

    about: str
    text: str


def write_report(run_directory: Path, out: Path | None = None) -> Path:
    """Write the report of a run directory, whole or not at all.

    Args:
        run_directory: what `hydistill build` wrote; any of its files may be missing.
        out: the file to write, default `report.html` in the run directory.

    Returns:
        The file written.

    Raises:
        MissingFileError: there is no such folder.
        RunDirectoryError: the folder holds none of a run's files.
    """
    path = out if out is not None else run_directory / REPORT
    write_text(path, render(read_run(run_directory)))
    return path


def render(run: Run) -> str:
    """Return the page; equal runs give equal pages."""
    template = environment().get_template("report.html.j2")
    page = template.render(
        run=run,
        decision=decide(run),
        version=__version__,
        notes=collect_notes(run),
        rungs=_rungs_present(run),
        worst_pictures=dict(run.pictures.by_id),
        figure={
            "training": Markup(figures.training_curves(run)),
            "classes": Markup(figures.per_class_accuracy(_compared(run))),
            "sizes": Markup(figures.sizes(run)),
            "wall": Markup(figures.wall_time(run)),
            **_method_figures(run.method),
        },
        confusions=[
            Markup(figures.confusion(score, f"confusion-{place}"))
            for place, score in enumerate(_compared(run))
        ],
        confused=[(score.name, confused_pairs(score)) for score in _compared(run)],
        calibration_sets=calibration_sets(run),
        part_names=PART_NAMES,
        max_class_counts=MAX_CLASS_COUNTS,
        max_picks=MAX_PICKS,
        max_seen_images=MAX_SEEN_IMAGES,
        max_ranges=MAX_RANGES,
        few_layers=FEW_LAYERS,
        many_classes=max((len(score.confusion) for score in run.scores), default=0) > 12,
    )
    return wording.printable(page)


def _method_figures(method: Method) -> dict[str, Markup]:
    drawn = {
        "selection": method.selection and method_figures.selection_history(method.selection),
        "coverage": method.gan and method_figures.class_coverage(method.gan),
        "influences": method.keys and method_figures.influences(method.keys),
        "key_history": method.keys and method_figures.key_history(method.keys),
        "attention": method.keys and method_figures.attention(method.keys),
        "class_map": method.compensated and method_figures.class_map(method.compensated),
    }
    return {name: Markup(svg or "") for name, svg in drawn.items()}


def collect_notes(run: Run) -> tuple[Note, ...]:
    """Return everything simulated, advisory, unjudged or unreadable, once each."""
    found = [Note("run", text) for text in (*run.notes, *run.problems)]
    for about, texts in (
        ("teacher", run.teacher.notes),
        ("student", run.student.notes),
        ("transfer set", run.transfer.notes),
        ("accuracy", (run.overlap.warning,) if run.overlap.warning else ()),
    ):
        found += [Note(about, text) for text in texts]
    for artifact in run.artifacts:
        found += [Note(artifact.title, text) for text in _artifact_notes(artifact)]
    if run.pictures.classes > len(run.pictures.strips):
        shown = f"images of {len(run.pictures.strips)} of {run.pictures.classes} classes are shown"
        found.append(Note("images", shown))
    return tuple(dict.fromkeys(found))


def calibration_sets(run: Run) -> list[tuple[CalibrationSet, list[str]]]:
    """Return every set of calibration images once, each with the titles of who uses it."""
    found = [(run.calibration, list[str]())] if run.calibration else []
    for artifact in run.artifacts:
        if artifact.calibration is None:
            continue
        images = artifact.calibration.images
        users = next((users for known, users in found if known == images), None)
        if users is None:
            found.append((images, [artifact.title]))
        else:
            users.append(artifact.title)
    return found


def confused_pairs(score: Score) -> list[tuple[str, str, float]]:
    """Return the most frequent wrong decisions as (true class, decided class, images)."""
    names = [name for name, _, _ in score.per_class]
    if len(names) != len(score.confusion):
        names = [str(place) for place in range(len(score.confusion))]
    pairs = [
        (names[true], names[decided], n)
        for true, row in enumerate(score.confusion)
        for decided, n in enumerate(row[: len(names)])
        if n > 0 and true != decided
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:MAX_CONFUSED]


def _artifact_notes(artifact: Artifact) -> list[str]:
    parity, latency = artifact.parity, artifact.latency
    found = list(artifact.notes)
    if parity:
        found += [parity.note] * bool(parity.note)
        found += [
            f"parity {rung.rung} ({rung.source}): {why}" for rung, why in _unjudged(parity.rungs)
        ]
    else:
        found.append("parity: not measured")
    if latency:
        found += [f"latency: {latency.note}"] * bool(latency.note)
        if latency.scopes and latency.advisory:
            found.append(f"latency is advisory: {latency.advisory_why or 'no reason was given'}")
    else:
        found.append("latency: not measured")
    others = (*(latency.gates if latency else ()), *artifact.gates)
    return found + [f"{gate.name}: {gate.why}" for gate in others if gate.passed is None]


def _unjudged(rungs: tuple[Rung, ...]) -> list[tuple[Rung, str]]:
    """Return the rungs without an answer, each with its reason."""
    found = []
    for rung in rungs:
        if rung.passed is None:
            whys = [gate.why for gate in rung.gates if gate.passed is None and gate.why]
            found.append((rung, "; ".join(dict.fromkeys([rung.note, *whys])).strip("; ")))
    return [(rung, why or "not judged") for rung, why in found]


def _compared(run: Run) -> list[Score]:
    """Return teacher, student and artifacts, in the order of the file, as far as colors reach."""
    return list(run.scores[: len(SERIES)])


def _rungs_present(run: Run) -> list[str]:
    present = {
        rung.rung for artifact in run.artifacts if artifact.parity for rung in artifact.parity.rungs
    }
    return [name for name in RUNGS if name in present] + sorted(present - set(RUNGS))


def _rung_answers(artifact: Artifact, name: str) -> list[Rung]:
    """Return an artifact's rungs of one name: int8 is judged on synthetic and on real images."""
    return [rung for rung in artifact.parity.rungs if rung.rung == name] if artifact.parity else []


def _range_comparison(quality: Quality, slug: str) -> Markup:
    return Markup(range_comparison(quality, slug))


def environment() -> Environment:
    """Return the templates, with the words and units of `wording.py` as filters."""
    environment = Environment(
        loader=PackageLoader("hydistill_edge.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "amount": wording.amount,
        "bits": wording.bits,
        "count": wording.count,
        "in_unit": wording.in_unit,
        "interval": wording.interval,
        "limit": wording.limit,
        "mib": wording.mebibytes,
        "one_in": wording.one_in,
        "listing": wording.listing,
        "ms": wording.milliseconds,
        "percent": wording.percent,
        "points": wording.points,
        "seconds": wording.seconds,
        "significant": wording.significant,
        "size": wording.size,
        "verdict": wording.verdict,
    }
    environment.filters.update(filters)
    environment.globals.update(
        headline_latency=headline_latency,
        parity_noise=lambda artifact: Markup(figures.parity_noise(artifact)),
        range_comparison=_range_comparison,
        latency_distribution=lambda artifact: Markup(figures.latency_distribution(artifact)),
        rung_answers=_rung_answers,
    )
    return environment
