"""The figures of the report: values in, inline SVG out, an empty text where there is nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hydistill_edge.report.data import Artifact, Run, Scope, Score
from hydistill_edge.report.drawing import (
    BAD,
    DASHES,
    GRID,
    INK,
    MARKERS,
    MUTED,
    PAPER,
    SERIES,
    draw,
    label,
    style_axes,
)
from hydistill_edge.report.wording import in_unit, milliseconds, percent, size

MAX_CLASSES = 24  # rows of the per-class figure; the worst are kept
MAX_CONFUSION = 32  # classes of a drawn confusion matrix
MAX_CELL_NUMBERS = 16  # classes up to which the cells carry their counts
MARKED = ("p50", "p90", "p99")
BYTES_PER_FLOAT = 4


def training_curves(run: Run) -> str:
    """Draw loss and hold-out agreement over the steps."""
    panels = [
        (key, title)
        for key, title in (("loss", "Loss"), ("holdout_agreement", "Agreement on the hold-out"))
        if len(_curve(run.history, key)[0]) > 1
    ]
    if not panels:
        return ""

    def paint(figure: Figure) -> None:
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (key, title), color in zip(row, panels, SERIES[1:], strict=False):
            steps, values = _curve(run.history, key)
            axes.plot(steps, values, color=color)
            axes.set_title(title)
            axes.set_xlabel("step")
            style_axes(axes, grid="y")
            if key == "holdout_agreement":
                best = int(np.argmax(values))
                axes.plot(steps[best], values[best], "o", color=color, markersize=6)
                axes.annotate(
                    f"best {percent(values[best])}",
                    (steps[best], values[best]),
                    xytext=(0, -14),
                    textcoords="offset points",
                    ha="right" if steps[best] > 0.5 * steps[-1] else "left",
                )
                axes.yaxis.set_major_formatter(lambda value, _: percent(value))

    return draw("training", "Training loss and hold-out agreement by step", (9.0, 2.9), paint)


def per_class_accuracy(scores: Sequence[Score]) -> str:
    """Draw one row per class and one mark per model; the axis starts where the values do.

    Marks and not bars: a bar has to start at 0, and differences near 100 % then vanish.
    """
    shown = [score for score in scores if score.per_class][: len(SERIES)]
    if not shown:
        return ""
    table = [
        {name: value for name, _, value in score.per_class if value is not None} for score in shown
    ]
    names = [name for name, _, _ in shown[0].per_class if any(name in row for row in table)]
    kept = sorted(names, key=lambda name: min(row.get(name, 1.0) for row in table))[:MAX_CLASSES]
    names = [name for name in names if name in kept]
    if not names:
        return ""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        gap = 0.56 / max(1, len(shown) - 1)
        for place, (score, row) in enumerate(zip(shown, table, strict=True)):
            rows = [at for at, name in enumerate(names) if name in row]
            axes.plot(
                [row[names[at]] for at in rows],
                [at + (place - (len(shown) - 1) / 2) * gap for at in rows],
                MARKERS[place],
                color=SERIES[place],
                markersize=5.5,
                markeredgecolor=PAPER,
                markeredgewidth=0.5,
                label=label(score.name, longest=48),
                clip_on=False,
            )
        axes.set_yticks(range(len(names)), [label(name) for name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.xaxis.set_major_formatter(lambda value, _: percent(value))
        low = min(row[name] for row in table for name in names if name in row)
        axes.set_xlim(max(0.0, low - 0.02 - 0.05 * (1 - low)), 1.0)
        for edge in range(1, len(names)):
            axes.axhline(edge - 0.5, color=GRID, linewidth=0.6)
        style_axes(axes)
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside upper left", ncols=min(3, len(shown)), handletextpad=0.2)

    height = 0.8 + len(names) * (0.22 + 0.045 * len(shown))
    return draw("classes", "Accuracy per class and model", (9.0, height), paint)


def confusion(score: Score, slug: str) -> str:
    """Draw a confusion matrix: rows are true classes, shares of the row are shades."""
    classes = len(score.confusion)
    square = all(len(row) == classes for row in score.confusion)
    if not square or not 2 <= classes <= MAX_CONFUSION:
        return ""
    names = [label(name, longest=14) for name, _, _ in score.per_class]
    names = names if len(names) == classes else [str(place) for place in range(classes)]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for true, row in enumerate(score.confusion):
            total = sum(row)
            for decided, n in enumerate(row):
                if n:
                    _cell(axes, true, decided, n, n / total, classes <= MAX_CELL_NUMBERS)
        axes.set_xlim(-0.5, classes - 0.5)
        axes.set_ylim(classes - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.set_xticks(range(classes), names, rotation=0 if _short(names) else 90)
        axes.set_yticks(range(classes), names)
        axes.set_xlabel("decided")
        axes.set_ylabel("true")
        axes.grid(visible=False)
        axes.tick_params(length=0, labelcolor=INK)
        axes.set_title(label(score.name, longest=48))
        for spine in axes.spines.values():
            spine.set(visible=True, color=GRID)

    side = 1.4 + 0.24 * classes
    return draw(slug, f"Confusion matrix of {score.name}", (side, side), paint)


def parity_noise(artifact: Artifact) -> str:
    """Draw the signal-to-noise ratio of each rung beside the limit that it was held against."""
    rungs = [
        (rung, value)
        for rung in (artifact.parity.rungs if artifact.parity else ())
        if (value := rung.metrics.get("snr_db")) is not None
    ]
    if not rungs:
        return ""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for at, (rung, value) in enumerate(rungs):
            color = BAD if rung.passed is False else SERIES[1]
            axes.plot([0, value], [at, at], color=color, linewidth=2.2)
            axes.plot(value, at, "o", color=color, markersize=6)
            axes.annotate(
                in_unit(value, "dB"),
                (value, at),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
            )
            for gate in rung.gates:
                if gate.unit == "dB" and gate.limit is not None:
                    axes.plot([gate.limit] * 2, [at - 0.32, at + 0.32], color=INK, linewidth=1.4)
        axes.set_yticks(
            range(len(rungs)), [label(f"{rung.rung} {rung.source}") for rung, _ in rungs]
        )
        axes.set_ylim(len(rungs) - 0.5, -0.5)
        axes.set_xlim(0, 1.18 * max(value for _, value in rungs))
        axes.set_xlabel("signal-to-noise ratio, dB (upright line: the limit)")
        style_axes(axes)
        axes.spines["left"].set_visible(False)

    slug = f"noise-{_slug(artifact.key)}"
    return draw(slug, "Signal-to-noise ratio by rung", (6.4, 0.75 + 0.3 * len(rungs)), paint)


def latency_distribution(artifact: Artifact) -> str:
    """Draw the share of queries answered within a time, by scope, with the percentiles marked."""
    latency = artifact.latency
    scopes = [scope for scope in latency.scopes if scope.counts] if latency else []
    if not latency or not scopes:
        return ""
    limits = [gate.limit for gate in latency.gates if gate.unit == "ms" and gate.limit is not None]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for place, scope in enumerate(scopes):
            _distribution(axes, scope, SERIES[1 + place], DASHES[place], place)
        low, high = _window(scopes)
        for bound in limits:
            if bound <= 1.5 * high:
                high = max(high, 1.08 * bound)
                axes.axvline(bound, color=BAD, linewidth=1.2, linestyle=(0, (4, 2)))
                axes.annotate(
                    f"limit {milliseconds(bound)}",
                    (bound, 0.02),
                    xytext=(-4, 0),
                    textcoords="offset points",
                    ha="right",
                    color=BAD,
                )
        axes.set_xlim(low, high)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.set_xlabel("ms per query")
        style_axes(axes, grid="y")
        axes.legend(loc="lower right")

    slug = f"latency-{_slug(artifact.key)}"
    return draw(slug, f"Latency distribution of {artifact.title}", (6.4, 2.7), paint)


def sizes(run: Run) -> str:
    """Draw the bytes of teacher, student and artifacts; models count 4 bytes per parameter."""
    rows = [
        (f"{name}, float32 weights", BYTES_PER_FLOAT * params)
        for name, params in (("teacher", run.teacher.params), ("student", run.student.params))
        if params
    ]
    rows += [(artifact.title, artifact.bytes) for artifact in run.artifacts if artifact.bytes]
    if len(rows) < 2:
        return ""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for at, (name, value) in enumerate(rows):
            color = MUTED if name.endswith("weights") else SERIES[1]
            axes.barh(at, value, height=0.56, color=color)
            axes.annotate(
                size(value), (value, at), xytext=(5, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(range(len(rows)), [label(name) for name, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 1.15 * max(value for _, value in rows))
        axes.xaxis.set_visible(False)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)

    return draw("sizes", "Bytes of models and artifacts", (8.0, 0.3 + 0.3 * len(rows)), paint)


def wall_time(run: Run) -> str:
    """Draw the seconds that each stage took, as one line of segments."""
    parts = [(stage, value) for stage, value in run.wall_s.items() if value]
    if not parts:
        return ""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        longest = max(value for _, value in parts)
        for at, (_, value) in enumerate(parts):
            axes.barh(at, value, height=0.56, color=SERIES[1])
            axes.annotate(
                f"{value:.1f} s",
                (value, at),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
            )
        axes.set_yticks(range(len(parts)), [label(stage) for stage, _ in parts])
        axes.set_ylim(len(parts) - 0.4, -0.6)
        axes.set_xlim(0, 1.15 * longest)
        axes.xaxis.set_visible(False)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)

    return draw("wall", "Wall time by stage", (8.0, 0.3 + 0.28 * len(parts)), paint)


def _curve(
    history: Sequence[Mapping[str, float | None]], key: str
) -> tuple[list[float], list[float]]:
    """Return the steps at which a value was logged, and the values."""
    points = [
        (step, value)
        for place, row in enumerate(history)
        if (value := row.get(key)) is not None
        for step in (row.get("step"),)
        for step in (place if step is None else step,)
    ]
    return [step for step, _ in points], [value for _, value in points]


def _cell(axes: Axes, true: int, decided: int, n: float, share: float, numbered: bool) -> None:
    hit = true == decided
    shade = 0.15 + 0.75 * share
    axes.add_patch(
        Rectangle(
            (decided - 0.5, true - 0.5),
            1,
            1,
            facecolor=SERIES[1] if hit else SERIES[2],
            alpha=shade,
            linewidth=0,
        )
    )
    if numbered:
        axes.text(
            decided,
            true,
            f"{n:.0f}",
            ha="center",
            va="center",
            fontsize=8,
            color=PAPER if shade > 0.6 else INK,
        )


def _distribution(axes: Axes, scope: Scope, color: str, dash: object, place: int) -> None:
    """Draw one scope's cumulative share over its histogram."""
    counts = np.array(scope.counts)
    share = np.concatenate([[0.0], counts.cumsum() / counts.sum()])
    axes.plot(scope.edges_ms, share, color=color, linestyle=dash, label=f"{scope.name} scope")
    height = 0.3 * counts / counts.max()
    axes.stairs(height, scope.edges_ms, fill=True, color=color, alpha=0.25)
    for name in MARKED:
        value = scope.times.get(name)
        if value is not None:
            level = float(name[1:]) / 100
            axes.plot(value, level, MARKERS[place], color=color, markersize=5)
            axes.annotate(
                f"{name} {milliseconds(value)}",
                (value, level),
                xytext=(7, -9),
                textcoords="offset points",
                fontsize=8,
            )


def _window(scopes: Sequence[Scope]) -> tuple[float, float]:
    """Return the times between which nearly everything happens; the far tail is told as max."""
    low = min(scope.edges_ms[0] for scope in scopes)
    tops = []
    for scope in scopes:
        share = np.cumsum(scope.counts) / sum(scope.counts)
        tops.append(scope.edges_ms[int(np.searchsorted(share, 0.995)) + 1])
    high = max(tops)
    return low - 0.04 * (high - low), high + 0.12 * (high - low)


def _short(names: Sequence[str]) -> bool:
    return all(len(name) <= 3 for name in names)


def _slug(key: str) -> str:
    return "".join(char if char.isascii() and char.isalnum() else "-" for char in key)
