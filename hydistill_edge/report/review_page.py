"""The review sheet: one self-contained HTML file with images that people should decide on.

Its only script writes the decisions into a file; without it, the CSV beside the page is filled in.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from hydistill_edge import __version__
from hydistill_edge.report.pictures import data_uri, png
from hydistill_edge.report.wording import printable

SCRIPT = "review.js"


@dataclass(frozen=True)
class Tile:
    """One image on the sheet.

    Attributes:
        id: of the image.
        uri: of its picture, as data.
        class_name: the class that teacher and student take it for.
        confidence: of that class, in [0, 1].
        threshold: that the confidence must exceed to be selected.
        selected: whether it was.
        facts: what else is known of it, by name; empty texts are left out.
    """

    id: str
    uri: str
    class_name: str
    confidence: float
    threshold: float
    selected: bool
    facts: dict[str, str]


@dataclass(frozen=True)
class Group:
    """Images that are shown for one reason."""

    title: str
    why: str
    tiles: tuple[Tile, ...]


def picture(image: NDArray[np.uint8]) -> str:
    """Return an image, shape (H, W, 1 or 3), as a data address."""
    return data_uri(png(image))


def render_review(groups: Sequence[Group], *, name: str, notes: Sequence[str], command: str) -> str:
    """Return the page; equal contents give equal pages.

    Args:
        groups: what is shown, in order.
        name: of the run.
        notes: sentences for the top.
        command: that reads the decisions back.
    """
    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = (
        _environment()
        .get_template("review.html.j2")
        .render(
            groups=groups,
            name=name,
            notes=notes,
            command=command,
            script=script,
            script_digest=digest,
            version=__version__,
        )
    )
    return printable(page)


def _script() -> str:
    environment = _environment()
    assert environment.loader is not None
    source, _, _ = environment.loader.get_source(environment, SCRIPT)
    return source


@cache
def _environment() -> Environment:
    filters: dict[str, Any] = {"score": lambda value: f"{value:.3f}"}
    environment = Environment(
        loader=PackageLoader("hydistill_edge.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment
