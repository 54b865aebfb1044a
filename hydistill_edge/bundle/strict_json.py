"""Strict JSON into frozen dataclasses: every problem is found, none is guessed away.

Unknown, missing and wrong-typed fields are collected and refused together. Kept to the standard
library, because the device reads manifests with it before it trusts anything.
"""

from __future__ import annotations

import json
import types
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydistill_edge.errors import BundleError

MAX_PROBLEMS_SHOWN = 20

_WORDS = {str: "a string", int: "an integer", float: "a number"}


def refuse(problems: Sequence[str], where: str) -> None:
    """Do nothing without problems, else list them.

    Raises:
        BundleError: there is at least one problem.
    """
    if not problems:
        return
    shown = [*problems[:MAX_PROBLEMS_SHOWN]]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise BundleError("\n".join([f"{where}: {count}", *(f"  {line}" for line in shown)]))


def load_json(data: bytes, where: str, *, limit: int) -> Any:
    """Parse ASCII JSON without repeated keys, NaN or infinities.

    Raises:
        BundleError: larger than `limit` bytes, nested too deep, or not such JSON.
    """
    if len(data) > limit:
        raise BundleError(f"{where}: {len(data)} bytes; at most {limit} are allowed")
    try:
        return json.loads(
            data.decode("ascii"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: not readable as JSON: {str(error)!a}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if repeated:
        raise ValueError(f"key {repeated[0]!r} stands there twice")
    return dict(pairs)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def parse(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    """Return `value` as `kind`, or note in `problems` what is wrong with it.

    Args:
        kind: a dataclass, str, int, float, `X | None`, `tuple[X, ...]` or `dict[str, str]`.
        value: what `load_json` gave.
        where: dotted path of the value, for the messages; empty at the top.
        problems: is appended to; the result counts only while it stays empty.
    """
    if is_dataclass(kind):
        return _parse_object(kind, value, where, problems)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        inner = next(arm for arm in get_args(kind) if arm is not type(None))
        return None if value is None else parse(inner, value, where, problems)
    if origin is tuple:
        return _parse_list(get_args(kind)[0], value, where, problems)
    if origin is dict:
        return _parse_strings(value, where, problems)
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits:
        problems.append(f"{where}: expected {_WORDS[kind]}, found {_shown(value)}")
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _parse_object(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(value, dict):
        problems.append(f"{where or 'the file'}: expected an object, found {_shown(value)}")
        return None
    before = len(problems)
    prefix = f"{where}." if where else ""
    known = [item.name for item in fields(kind)]
    problems += [f"{prefix}{_shown(key)[1:-1]}: unknown" for key in value if key not in known]
    # A default is a convenience of the constructor; in a file every field is written out.
    problems += [f"{prefix}{key}: missing" for key in known if key not in value]
    hints = _hints(kind)
    parsed = {
        key: parse(hints[key], value[key], f"{prefix}{key}", problems)
        for key in known
        if key in value
    }
    return None if len(problems) > before else kind(**parsed)


def _parse_list(kind: Any, value: Any, where: str, problems: list[str]) -> tuple[Any, ...]:
    if not isinstance(value, list):
        problems.append(f"{where}: expected a list, found {_shown(value)}")
        return ()
    return tuple(parse(kind, item, f"{where}[{i}]", problems) for i, item in enumerate(value))


def _parse_strings(value: Any, where: str, problems: list[str]) -> dict[str, str]:
    if not isinstance(value, dict):
        problems.append(f"{where}: expected an object, found {_shown(value)}")
        return {}
    return {
        key: parse(str, item, f"{where}.{_shown(key)[1:-1]}", problems)
        for key, item in value.items()
    }
