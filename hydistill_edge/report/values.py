"""Reading JSON that may lack anything: each reader gives the typed value, or nothing.

A report shows what there is. So a missing key, a null and a value of another type all read as
"not measured", and never stop the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]


def mapping(source: Any, key: str) -> Json:
    """Return the object under a key, or an empty one."""
    value = source.get(key) if isinstance(source, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def items(source: Any, key: str) -> Sequence[Any]:
    """Return the list under a key, or an empty one."""
    value = source.get(key) if isinstance(source, Mapping) else None
    return value if isinstance(value, list) else ()


def objects(source: Any, key: str) -> list[Json]:
    """Return the objects of the list under a key; what is no object is left out."""
    return [value for value in items(source, key) if isinstance(value, Mapping)]


def number(source: Json, key: str) -> float | None:
    """Return the finite number under a key, or None; a bool is no number."""
    value = source.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def numbers(source: Json, key: str) -> tuple[float, ...]:
    """Return the list of numbers under a key; empty where one of them is none."""
    found = items(source, key)
    whole = all(isinstance(value, int | float) and math.isfinite(value) for value in found)
    return tuple(found) if whole else ()


def plain_numbers(source: Json) -> dict[str, float | None]:
    """Return an object's numbers and nulls; what is neither is left out."""
    return {
        str(key): number(source, key)
        for key, value in source.items()
        if value is None or number(source, key) is not None
    }


def text(source: Json, key: str) -> str:
    """Return the value under a key as text; empty where there is none or it is no plain value."""
    value = source.get(key)
    return "" if value is None or isinstance(value, Mapping | list) else str(value)


def flag(source: Json, key: str) -> bool | None:
    """Return the answer under a key: True, False or None."""
    value = source.get(key)
    return value if isinstance(value, bool) else None


def notes(source: Json) -> tuple[str, ...]:
    """Return the texts of the `note` and every `*_note` beside the values of an object."""
    found = [text(source, key) for key in sorted(source) if key == "note" or key.endswith("_note")]
    return tuple(note for note in found if note)


def flat(source: Json, prefix: str = "") -> dict[str, str]:
    """Return nested plain values as one level: `{"a": {"b": 1}}` becomes `{"a b": "1"}`."""
    rows: dict[str, str] = {}
    for key, value in source.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            rows |= flat(value, f"{name} ")
        elif isinstance(value, list):
            rows[name] = ", ".join(str(item) for item in value)
        elif value is not None:
            rows[name] = (
                {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
            )
    return rows
