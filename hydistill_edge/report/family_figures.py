"""The figure of several students: how good against how costly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from hydistill_edge.report.drawing import MARKERS, MUTED, SERIES, draw, label, style_axes
from hydistill_edge.report.family_data import Best, Family, Network
from hydistill_edge.report.wording import amount, percent, significant

_WIDE = 8.0
"""Ratio of the largest to the smallest cost from which on the axis is logarithmic."""


@dataclass(frozen=True)
class _Point:
    """A network on the figure; `place` is its color and marker, 0 for teacher and small network."""

    name: str
    cost: float
    score: float
    place: int


def score_by_cost(family: Family) -> str:
    """Draw accuracy, or agreement without labels, against MACs and against latency.

    The left half has teacher, small network and students; the right one the best int8 artifact of
    each student, as far as they were measured on one machine.
    """
    panels = [
        ("Networks", "multiply-accumulates of one image", _networks(family), amount),
        ("Best int8 artifacts", "p50 latency, ms", _artifacts(family), significant),
    ]
    shown = [panel for panel in panels if any(point.place for point in panel[2])]
    if not shown:
        return ""

    def paint(figure: Figure) -> None:
        row = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
        for axes, (title, cost, points, said) in zip(row, shown, strict=True):
            _spread(axes, points)
            for point in points:
                _mark(axes, point)
            axes.set_title(title)
            axes.set_xlabel(cost)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _, said=said: said(value)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
            axes.margins(y=0.15)
            style_axes(axes, grid="y")
        row[0].set_ylabel("accuracy" if family.by_labels else "agreement with the teacher")

    what = "Accuracy" if family.by_labels else "Agreement with the teacher"
    width = 9.0 if len(shown) == 2 else 5.6
    return draw("cost", f"{what} by cost", (width, 3.5), paint)


def _networks(family: Family) -> list[_Point]:
    beside = [("teacher", family.teacher), ("small network", family.small)]
    lines = [(name, network, 0) for name, network in beside if network is not None]
    lines += [
        (student.name, student.network, 1 + place) for place, student in enumerate(family.students)
    ]
    return [
        _Point(name, network.macs, score, place)
        for name, network, place in lines
        if network.macs and (score := _score(network, family.by_labels)) is not None
    ]


def _artifacts(family: Family) -> list[_Point]:
    """Return those of one machine: times of different ones are not compared."""
    timed = [(place, student, student.best) for place, student in enumerate(family.students, 1)]
    machines = [best.on for _, _, best in timed if best is not None and best.p50_ms]
    machine = max(machines, key=machines.count, default="")
    return [
        _Point(student.name, best.p50_ms, score, place)
        for place, student, best in timed
        if best is not None and best.p50_ms and best.on == machine
        if (score := _score(best, family.by_labels)) is not None
    ]


def _score(line: Network | Best, by_labels: bool) -> float | None:
    return line.accuracy if by_labels else line.agreement


def _spread(axes: Axes, points: Sequence[_Point]) -> None:
    """Choose the axis of costs, with room for the names."""
    low, high = min(point.cost for point in points), max(point.cost for point in points)
    if high > _WIDE * low:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.6, high * 1.6)
        axes.set_xticks([low, (low * high) ** 0.5, high])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        room = 0.15 * (high - low) or 0.5 * high
        axes.set_xlim(low - room, high + room)
        axes.xaxis.set_major_locator(MaxNLocator(5))


def _mark(axes: Axes, point: _Point) -> None:
    low, high = axes.get_xlim()
    right = axes.transData.transform((point.cost, 0))[0] > axes.transAxes.transform((0.6, 0))[0]
    color = SERIES[point.place % len(SERIES)] if point.place else MUTED
    marker = MARKERS[point.place % len(MARKERS)]
    axes.plot(point.cost, point.score, marker, color=color, markersize=7, clip_on=False)
    axes.annotate(
        label(point.name, longest=24),
        (point.cost, point.score),
        xytext=(-8 if right else 8, 0),
        textcoords="offset points",
        ha="right" if right else "left",
        va="center",
        color=MUTED if not point.place else None,
    )
    axes.set_xlim(low, high)
