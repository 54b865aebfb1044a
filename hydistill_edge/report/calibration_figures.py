"""The figure of the calibration section: the set's range of each layer beside the reference's."""

from __future__ import annotations

import math
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hydistill_edge.report.calibration_data import LayerRange, Quality
from hydistill_edge.report.drawing import BAD, GRID, INK, MUTED, SERIES, draw, label, style_axes
from hydistill_edge.report.wording import in_unit, percent, significant

MAX_RANGES = 24  # layers of the figure; those that lose most are kept
REACH = 2.5  # times the reference's greatest magnitude; what lies beyond is an arrow


@dataclass(frozen=True)
class _Row:
    """A layer's two ranges, as shares of the greatest magnitude of its reference."""

    layer: LayerRange
    low: float
    high: float
    reference_low: float
    reference_high: float


def range_comparison(quality: Quality, slug: str) -> str:
    """Draw the range of the set over that of the reference, a row per layer, each to its scale."""
    rows = [row for layer in _hardest(quality.layers) if (row := _row(layer))]
    if not rows:
        return ""
    uncovered = any(row.reference_low < row.low or row.reference_high > row.high for row in rows)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for at, row in enumerate(rows):
            _intervals(axes, at, row)
        axes.set_yticks(range(len(rows)), [label(row.layer.name) for row in rows])
        axes.set_ylim(len(rows) - 0.45, -0.55)
        least = min(min(row.low, row.reference_low) for row in rows)
        most = max(max(row.high, row.reference_high) for row in rows)
        axes.set_xlim(max(least, -REACH) - 0.06, min(most, REACH) + 0.06)
        axes.set_xlabel("share of the greatest magnitude in the reference, layer by layer")
        style_axes(axes)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.spines["left"].set_visible(False)
        _legend(figure, axes, quality, uncovered)

    shown = "Range of the calibration set against the reference by layer"
    return draw(slug, shown, (9.0, 0.95 + 0.27 * len(rows)), paint)


def _hardest(layers: tuple[LayerRange, ...]) -> list[LayerRange]:
    """Return the layers that lose most, in the order of the network."""

    def loss(layer: LayerRange) -> tuple[float, float, float]:
        signal = math.inf if layer.signal_db is None else layer.signal_db
        covered = 1.0 if layer.covered is None else layer.covered
        return signal, covered, -(layer.excess_bits or 0.0)

    kept = sorted(range(len(layers)), key=lambda place: loss(layers[place]))[:MAX_RANGES]
    return [layers[place] for place in sorted(kept)]


def _row(layer: LayerRange) -> _Row | None:
    ends = (layer.low, layer.high, layer.reference_low, layer.reference_high)
    known = [end for end in ends if end is not None]
    if len(known) < len(ends):
        return None
    scale = max(abs(known[2]), abs(known[3])) or max(abs(known[0]), abs(known[1])) or 1.0
    return _Row(layer, *(end / scale for end in known))


def _intervals(axes: Axes, at: int, row: _Row) -> None:
    axes.plot(
        [row.reference_low, row.reference_high],
        [at, at],
        color=GRID,
        linewidth=9,
        solid_capstyle="butt",
    )
    for low, high in (
        (row.reference_low, min(row.low, row.reference_high)),
        (max(row.high, row.reference_low), row.reference_high),
    ):
        if low < high:
            axes.plot([low, high], [at, at], color=BAD, linewidth=9, solid_capstyle="butt")
    ends = max(row.low, -REACH), min(row.high, REACH)
    axes.plot(ends, [at, at], color=SERIES[1], linewidth=2)
    for end, true, arrow in zip(ends, (row.low, row.high), ("<", ">"), strict=True):
        axes.plot(end, at, arrow if end != true else "|", color=SERIES[1], markersize=7)
    layer, said = row.layer, []
    if max(-row.low, row.high) > REACH:
        said.append(f"reaches {significant(max(-row.low, row.high))} times as far")
    if layer.signal_db is not None:
        said.append(in_unit(layer.signal_db, "dB"))
    elif layer.covered is not None:
        said.append(f"{percent(layer.covered)} covered")
    axes.annotate(
        ", ".join(said),
        (1, at),
        xycoords=axes.get_yaxis_transform(),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=INK,
    )


def _legend(figure: Figure, axes: Axes, quality: Quality, uncovered: bool) -> None:
    """Name the three looks by lines that hold no value."""
    reference = label(quality.reference or "the reference", longest=48)
    axes.plot([], [], color=GRID, linewidth=9, label=f"0.1 % to 99.9 % of {reference}")
    axes.plot([], [], "|-", color=SERIES[1], linewidth=2, label="range of the calibration set")
    if uncovered:
        axes.plot([], [], color=BAD, linewidth=9, label="not covered")
    figure.legend(loc="outside upper left", ncols=3)
