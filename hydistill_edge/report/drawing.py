"""Matplotlib as a maker of small inline SVGs that take their colors and font from the page.

Figures are drawn with stand-in colors; `to_svg` replaces them with CSS variables, so one drawing
is right in light, in dark and in print. Series differ in marker or dash too, not in color alone.
Nothing global is touched (no pyplot), and equal figures give equal text.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Callable
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
SERIES = tuple(f"#0a0c0{place}" for place in range(1, 8))
GOOD, BAD = "#0a0d01", "#0a0d02"
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    PAPER: "--card",
    GOOD: "--good",
    BAD: "--bad",
    **{color: f"--series-{place}" for place, color in enumerate(SERIES, start=1)},
}
MARKERS = ("o", "D", "s", "^", "v", "P", "X")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), "-", "-", "-")

MAX_ZOOM = 1.6  # of a figure on a wide page; text then stands at the size of the page's
MAX_LABEL = 32  # characters of a user's name in a figure

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "hydistill-edge",
    "text.parse_math": False,  # a "$" in a class name is a "$"
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "figure.constrained_layout.use": True,
}


def label(name: str, *, longest: int = MAX_LABEL) -> str:
    """Return a user's name as a figure can show it: printable, one line, not too long."""
    shown = "".join("�" if unicodedata.category(char) in ("Cc", "Cs") else char for char in name)
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def draw(
    slug: str,
    description: str,
    size: tuple[float, float],
    paint: Callable[[Figure], None],
) -> str:
    """Return a figure as inline SVG.

    Args:
        slug: prefix of the ids inside, unique on the page.
        description: what a reader who cannot see it should know.
        size: width and height in inches; the page scales it, keeping the ratio.
        paint: draws into the empty figure.
    """
    with mpl.rc_context(SETTINGS), warnings.catch_warnings():
        # DejaVu Sans measures the text; a glyph that it lacks comes from the reader's font.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size)
        paint(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return to_svg(out.getvalue(), slug, description)


def to_svg(document: str, slug: str, description: str) -> str:
    """Return matplotlib's SVG document as an element that can stand in a page."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{slug}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{slug}-\1)", svg)
    svg = re.sub(r'(xlink:href|href)="#([^"]+)"', rf'href="#{slug}-\2"', svg)
    svg = re.sub(r"font(-family)?: ([\d.]+px )?'DejaVu Sans'[^;\"]*", _page_font, svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert box, "matplotlib writes a viewBox"
    head = (
        f'<svg class="figure" role="img" aria-label="{escape(description)}" '
        f'viewBox="{box[0][9:-1]}" style="max-width: {float(box[1]) * MAX_ZOOM:.0f}px">'
    )
    body = svg[svg.index(">") + 1 :].strip()
    return head + body


def style_axes(axes: Axes, *, grid: str = "x") -> None:
    """Keep the grid of one direction and drop the ticks."""
    axes.grid(visible=False)
    axes.grid(visible=True, axis="x" if grid == "x" else "y")
    axes.tick_params(length=0)


def _page_font(match: re.Match[str]) -> str:
    return f"font: {match[2]}var(--font)" if match[2] else "font-family: var(--font)"
