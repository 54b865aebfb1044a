"""Decisions of people on images of a pool: accept, reject or delete, by id, in a file.

    id,decision
    web:cats/17.png,accept
    web:cats/18.png,

Written by `hydistill review` as a sheet to fill in, and read back by it and by the selection. An
image without a decision is left to the selection.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from hydistill_edge.atomic import replacing
from hydistill_edge.errors import MissingFileError, UsageError

Decision = Literal["accept", "reject", "delete"]
"""Accepted images are always selected, rejected ones never, deleted ones leave the run."""


@dataclass(frozen=True)
class Decisions:
    """What was decided, by image id.

    Attributes:
        by_id: decision of every image that has one.
        undecided: how many lines had none.
    """

    by_id: Mapping[str, Decision] = field(default_factory=dict)
    undecided: int = 0

    def ids(self, *decisions: Decision) -> list[str]:
        """Return the ids with one of these decisions."""
        return [name for name, decision in self.by_id.items() if decision in decisions]

    @property
    def digest(self) -> str:
        """The sha256 (hex) of the decisions; their order does not matter."""
        text = json.dumps(sorted(self.by_id.items()))
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def read_decisions(path: Path) -> Decisions:
    """Read a decisions file.

    Args:
        path: `.csv` with the columns `id` and `decision` (others are ignored), or `.json`: an
            object of decisions by id, or a list of objects with `id` and `decision`.

    Raises:
        MissingFileError: no such file.
        UsageError: no such table, an unknown decision, or an id that stands twice.
    """
    by_id: dict[str, Decision] = {}
    undecided = 0
    for where, name, word in _entries(path):
        decision = word.strip().lower()
        if not decision:
            undecided += 1
            continue
        if decision not in get_args(Decision):
            raise UsageError(
                f"{path}, {where}: decision {word!r}; expected {', '.join(get_args(Decision))}, "
                "or nothing to leave it open"
            )
        if name in by_id:
            raise UsageError(f"{path}, {where}: the id {name!r} stands twice; keep one line")
        by_id[name] = decision  # type: ignore[assignment]
    return Decisions(by_id, undecided)


def write_decisions(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV to fill in: `id`, an empty `decision`, and what else is told of each image."""
    entries = list(rows)
    columns = ["id", "decision", *(key for key in (entries[0] if entries else {}) if key != "id")]
    with (
        replacing(path) as partial,
        partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
    ):
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows(entries)


def _entries(path: Path) -> list[tuple[str, str, str]]:
    try:
        # Spreadsheets put a mark in front; odd file names are no UTF-8.
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{path}: no such file; `hydistill review RUN` writes a sheet to fill in"
        ) from error
    if path.suffix.lower() == ".json":
        return _json_entries(path, text)
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        columns, rows = tuple(reader.fieldnames or ()), list(reader)
    except csv.Error as error:  # such as a quote that is never closed
        raise UsageError(f"{path}: no CSV table ({error}); save the sheet again") from error
    if not {"id", "decision"} <= set(columns):
        raise UsageError(
            f"{path}: its first line is {', '.join(columns) or 'empty'}; expected the columns id "
            "and decision"
        )
    return [
        (f"line {number}", row["id"] or "", row["decision"] or "")
        for number, row in enumerate(rows, start=2)
    ]


def _json_entries(path: Path, text: str) -> list[tuple[str, str, str]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON ({error})") from error
    if isinstance(value, dict):
        value = [{"id": name, "decision": decision} for name, decision in value.items()]
    found = []
    for place, row in enumerate(value if isinstance(value, list) else [None]):
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            raise UsageError(
                f"{path}, entry {place}: expected an object with id and decision, or one object of "
                "decisions by id"
            )
        found.append((f"entry {place}", row["id"], str(row.get("decision") or "")))
    return found
