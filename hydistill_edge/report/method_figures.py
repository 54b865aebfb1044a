"""The figures of the method's section: values in, inline SVG out, an empty text for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from hydistill_edge.report.density import density
from hydistill_edge.report.drawing import (
    BAD,
    DASHES,
    GRID,
    INK,
    MUTED,
    PAPER,
    SERIES,
    draw,
    label,
    style_axes,
)
from hydistill_edge.report.method_data import (
    ClassMap,
    Compensated,
    Gan,
    Keys,
    SelectionAudit,
)
from hydistill_edge.report.wording import percent, significant

FLAG_BELOW = 0.6
MAX_CLASSES = 24  # rows of the coverage figure; the lowest are kept
MAX_LAYERS = 48  # layers of a figure; a network with more is told in the table
HELD = (0.5, 0.9)  # shares of a class's made images inside the lines of the map
MADE = {
    "compensated": "One tensor for all classes",
    "class-specific": "Baseline: one tensor per class",
}
MAX_CELL_NUMBERS = 12  # columns up to which the cells of the attention carry their numbers


def selection_history(audit: SelectionAudit) -> str:
    """Draw, epoch by epoch, the share of the pool and of the teacher, and the thresholds."""
    epochs = audit.epochs
    if len(epochs) < 2:
        return ""
    at = [entry.epoch for entry in epochs]
    taken = [
        entry.selected / entry.pool if entry.pool and entry.selected is not None else None
        for entry in epochs
    ]
    shares = [
        ("images selected, of the pool", taken),
        ("the teacher's say", [entry.teacher_share for entry in epochs]),
    ]
    bars = [entry.thresholds for entry in epochs]

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for place, (name, values) in enumerate(shares):
            known = [(x, y) for x, y in zip(at, values, strict=True) if y is not None]
            left.plot(
                [x for x, _ in known],
                [y for _, y in known],
                color=SERIES[1 + place],
                linestyle=DASHES[place],
                label=name,
            )
        fallback = [
            (x, y)
            for x, y, entry in zip(at, taken, epochs, strict=True)
            if entry.by_threshold is False and y is not None
        ]
        if fallback:
            left.plot(*zip(*fallback, strict=True), "o", color=BAD, markersize=4, label="fallback")
        left.set_title("Selection")
        known_bars = [(x, row) for x, row in zip(at, bars, strict=True) if row]
        if known_bars:
            steps = [x for x, _ in known_bars]
            right.fill_between(
                steps,
                [min(row) for _, row in known_bars],
                [max(row) for _, row in known_bars],
                color=SERIES[1],
                alpha=0.2,
                linewidth=0,
                label="lowest to highest class",
            )
            right.plot(
                steps,
                [sum(row) / len(row) for _, row in known_bars],
                color=SERIES[1],
                label="mean of the classes",
            )
        right.set_title("Thresholds of the classes")
        for axes in (left, right):
            axes.set_ylim(-0.02, 1.02)
            axes.set_xlabel("epoch")
            axes.yaxis.set_major_formatter(lambda value, _: percent(value))
            style_axes(axes, grid="y")
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="best", fontsize=8)

    return draw("selection", "Selected share and thresholds by epoch", (9.0, 2.9), paint)


def class_coverage(gan: Gan) -> str:
    """Draw what share of each class's real features the made images reach, and the flag's line."""
    known = [(name, share) for name, share in gan.coverage if share is not None]
    kept = sorted(known, key=lambda row: row[1])[:MAX_CLASSES]
    rows = [row for row in known if row in kept]
    if not rows:
        return ""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for at, (_, share) in enumerate(rows):
            color = BAD if share < FLAG_BELOW else SERIES[1]
            axes.barh(at, share, height=0.56, color=color)
            _beside(axes, percent(share), 1.0, at)
        axes.axvline(FLAG_BELOW, color=INK, linewidth=1.2)
        axes.set_yticks(range(len(rows)), [label(name) for name, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 1.12)
        axes.set_xlabel("share of the bins of real features (upright line: flagged below)")
        axes.xaxis.set_major_formatter(lambda value, _: percent(value) if value <= 1 else "")
        style_axes(axes)
        axes.spines["left"].set_visible(False)

    return draw("coverage", "Coverage by class", (6.4, 0.75 + 0.28 * len(rows)), paint)


def influences(keys: Keys) -> str:
    """Draw the influence of each layer, kept ones in color, and the threshold as a line."""
    rows = [(layer, layer.influence) for layer in keys.layers if layer.influence is not None]
    if not 0 < len(rows) <= MAX_LAYERS:
        return ""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for at, (layer, value) in enumerate(rows):
            axes.barh(at, value, height=0.56, color=SERIES[1] if layer.chosen else MUTED)
            _beside(axes, significant(value, zeros=True), value, at)
        if keys.threshold is not None:
            axes.axvline(keys.threshold, color=BAD, linewidth=1.2, linestyle=(0, (4, 2)))
            axes.annotate(
                f"threshold {significant(keys.threshold, zeros=True)}",
                (keys.threshold, 1.0),
                xycoords=axes.get_xaxis_transform(),
                xytext=(4, 2),
                textcoords="offset points",
                color=BAD,
                fontsize=8,
            )
        axes.set_yticks(range(len(rows)), [label(layer.name) for layer, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 1.16 * max(value for _, value in rows))
        axes.set_xlabel("influence (grey: not kept)")
        style_axes(axes)
        axes.spines["left"].set_visible(False)

    return draw("influences", "Influence of the layers", (6.4, 0.9 + 0.27 * len(rows)), paint)


def attention(keys: Keys) -> str:
    """Draw the mean attention; columns of layers that were not kept are grey."""
    table = keys.attention
    if not table or max(len(table), len(table[0])) > MAX_LAYERS:
        return ""
    grey = {
        place for place, layer in enumerate(keys.layers) if keys.by_teacher and not layer.chosen
    }
    most = max(max(row) for row in table) or 1.0

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for row, values in enumerate(table):
            for column, value in enumerate(values):
                color = MUTED if column in grey else SERIES[1]
                shade = 0.08 + 0.87 * max(0.0, value) / most
                axes.add_patch(
                    Rectangle(
                        (column - 0.5, row - 0.5), 1, 1, facecolor=color, alpha=shade, linewidth=0
                    )
                )
                if len(values) <= MAX_CELL_NUMBERS:
                    axes.text(
                        column,
                        row,
                        f"{value:.2f}",
                        ha="center",
                        va="center",
                        fontsize=7.5,
                        color=PAPER if shade > 0.6 else INK,
                    )
        axes.set_xlim(-0.5, len(keys.columns) - 0.5)
        axes.set_ylim(len(keys.rows) - 0.5, -0.5)
        axes.set_xticks(range(len(keys.columns)), _short(keys.columns), rotation=90)
        axes.set_yticks(range(len(keys.rows)), _short(keys.rows))
        teacher, student = "layers of the teacher", "layers of the student"
        axes.set_xlabel(teacher if keys.by_teacher else student)
        axes.set_ylabel(student if keys.by_teacher else teacher)
        axes.grid(visible=False)
        axes.tick_params(length=0, labelcolor=INK)
        for spine in axes.spines.values():
            spine.set(visible=True, color=GRID)

    size = (2.6 + 0.4 * len(keys.columns), 2.0 + 0.27 * len(keys.rows))
    return draw("attention", "Mean attention between layers", size, paint)


def key_history(keys: Keys) -> str:
    """Draw in which epochs each layer was kept."""
    if len(keys.history) < 2 or len(keys.layers) > MAX_LAYERS:
        return ""
    ends = [epoch for epoch, _ in keys.history]
    starts = [0.0, *ends[:-1]]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for at, layer in enumerate(keys.layers):
            kept = [at in chosen for _, chosen in keys.history]
            color = SERIES[1] if layer.chosen else MUTED
            axes.broken_barh(
                [(starts[a], ends[b - 1] - starts[a]) for a, b in _stretches(kept)],
                (at - 0.3, 0.6),
                facecolors=color,
                linewidth=0,
            )
        axes.set_yticks(range(len(keys.layers)), [label(layer.name) for layer in keys.layers])
        axes.set_ylim(len(keys.layers) - 0.4, -0.6)
        axes.set_xlim(0, ends[-1])
        axes.set_xlabel("epoch (grey: not kept at the end)")
        style_axes(axes)
        axes.spines["left"].set_visible(False)

    size = (6.4, 0.75 + 0.24 * len(keys.layers))
    return draw("key-history", "Epochs in which each layer was kept", size, paint)


def class_map(compensated: Compensated) -> str:
    """Draw the images of a few classes on a plane, with lines around where they are dense.

    On the left the set's: natural images, and those with a compensator that serves all classes. On
    the right, where it was made, the baseline with one tensor per class, on the same plane.
    """
    found = compensated.map
    if found is None or len(found.classes) > len(SERIES):
        return ""
    present = {kind for _, _, _, kind in found.points}
    panels = [(kind, title) for kind, title in MADE.items() if kind in present]
    panels = panels or [("compensated", MADE["compensated"])]
    window = _window([point[:2] for point in found.points])

    def paint(figure: Figure) -> None:
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (kind, title) in zip(row, panels, strict=True):
            axes.set_title(title)
            for place in range(len(found.classes)):
                _class_on_a_plane(axes, found, place, kind, window)
            axes.set_xlim(window[:2])
            axes.set_ylim(window[2:])
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_aspect("equal")
            axes.grid(visible=False)
            for spine in axes.spines.values():
                spine.set(visible=True, color=GRID)
        handles = [
            Line2D(
                [], [], marker="o", linestyle="", color=SERIES[place], label=label(name, longest=20)
            )
            for place, name in enumerate(found.classes)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))

    description = "Map of natural and made images by the teacher's features"
    return draw("class-map", description, (9.0 if len(panels) == 2 else 5.6, 4.9), paint)


def _class_on_a_plane(
    axes: Axes, found: ClassMap, place: int, made: str, window: tuple[float, float, float, float]
) -> None:
    """Draw one class: crosses for what was made, circles for natural images, lines of density."""
    color = SERIES[place]
    for kind, marker, size in ((made, "x", 14), ("natural", "o", 20)):
        points = [(x, y) for x, y, at, of in found.points if (at, of) == (place, kind)]
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, s=size, marker=marker, color=color, linewidths=0.8)
        dense = density(points, window) if kind == made else None
        if dense is not None:
            levels = sorted({dense.level(share) for share in HELD})
            axes.contour(
                dense.x, dense.y, dense.values, levels=levels, colors=color, linewidths=0.9
            )


def _window(points: Sequence[tuple[float, float]]) -> tuple[float, float, float, float]:
    """Return the square around all points, with room for the lines."""
    x, y = [point[0] for point in points], [point[1] for point in points]
    half = 0.6 * max(max(x) - min(x), max(y) - min(y), 1e-6)
    across, along = (max(x) + min(x)) / 2, (max(y) + min(y)) / 2
    return across - half, across + half, along - half, along + half


def _stretches(kept: Sequence[bool]) -> list[tuple[int, int]]:
    """Return the half-open stretches of places that are true."""
    edges = [place for place, (a, b) in enumerate(pairwise([False, *kept, False])) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _beside(axes: Axes, said: str, value: float, at: int) -> None:
    axes.annotate(said, (value, at), xytext=(5, 0), textcoords="offset points", va="center")


def _short(names: Sequence[str]) -> list[str]:
    return [label(name, longest=20) for name in names]
