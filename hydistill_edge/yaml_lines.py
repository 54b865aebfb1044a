"""YAML with line numbers: plain values, plus the line that each key stands on."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import yaml

from hydistill_edge.errors import RecipeError

KeyPath = tuple[str | int, ...]
"""Where a value stands: ("targets", 0, "device")."""

MAX_DEPTH = 64
"""Keys inside keys; a recipe has five."""

MAX_PLACES = 100_000
"""Keys and items of a text: a person writes hundreds, aliases of aliases make billions."""


def parse(text: str, *, name: str) -> tuple[Any, dict[KeyPath, int]]:
    """Return the document's plain value and the line (from 1) of every key and list item.

    Only plain YAML is read: no tags that construct objects. A key that stands twice in one
    mapping is refused, because YAML would silently keep the last one.

    Raises:
        RecipeError: broken YAML, or duplicate keys; all of the latter together.
    """
    lines: dict[KeyPath, int] = {}
    problems: list[str] = []
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return {}, lines
        _note_lines(node, (), lines, problems)
        if len(lines) > MAX_PLACES:
            problems = [f"more than {MAX_PLACES:,} keys and items; aliases may repeat each other"]
        if problems:
            raise RecipeError(problems, path=name)
        return yaml.safe_load(text), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise RecipeError(
            [f"{where}broken YAML: {error.problem or error.context}"], path=name
        ) from error
    except RecursionError as error:
        raise RecipeError(
            ["nested too deeply, or an alias stands inside itself"], path=name
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError([f"not a YAML text: {error}"], path=name) from error


def line_of(path: KeyPath, lines: Mapping[KeyPath, int]) -> int | None:
    """Return the line of the key, or of the nearest enclosing key that has one."""
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return None


def _note_lines(
    node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], problems: list[str]
) -> None:
    if len(path) > MAX_DEPTH:
        raise RecursionError  # however deep this interpreter would go
    if len(lines) > MAX_PLACES:
        return
    if isinstance(node, yaml.MappingNode):
        seen: dict[Hashable, int] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if key in seen:
                problems.append(
                    f'line {line}: key "{key}" stands twice (first on line {seen[key]})'
                )
            seen[key] = line
            place = (*path, key)
            lines[place] = line
            _note_lines(value_node, place, lines, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            place = (*path, index)
            lines[place] = item.start_mark.line + 1
            _note_lines(item, place, lines, problems)
