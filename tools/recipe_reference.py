"""Write the tables of docs/recipe.md from the schema of recipes and the settings' docstrings.

    python tools/recipe_reference.py           write the tables
    python tools/recipe_reference.py --check   say whether they are stale (exit code 1)

Everything outside the two marker comments is written by hand and stays as it is.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from hydistill_edge.recipe import METHODS, Recipe

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipe.md"
BEGIN = "<!-- Written by tools/recipe_reference.py from the program, from here on. -->"
END = "<!-- Up to here. -->"

Schema = Mapping[str, Any]


def keys(schema: Schema) -> Iterator[str]:
    """Yield every key of a recipe as a path: `images.synthetic.count`, `targets[].device`."""
    for path, section in sections(schema):
        for name in section["properties"]:
            yield f"{path}.{name}".lstrip(".")


def sections(
    schema: Schema, section: Schema | None = None, path: str = ""
) -> Iterator[tuple[str, Schema]]:
    """Yield every section with its path, each before those inside it.

    Where one of several sections may stand, as the settings of a method, all come, one by one.
    """
    section = schema if section is None else section
    yield path, section
    for name, entry in section["properties"].items():
        for inner, many in _inners(schema, entry):
            yield from sections(schema, inner, f"{path}.{name}{'[]' if many else ''}".lstrip("."))


def page(written: str) -> str:
    """Return the page with its tables made anew."""
    before, _, rest = written.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{PAGE.name}: the two marker comments are missing:\n{BEGIN}\n{END}")
    return "".join([before, BEGIN, "\n\n", tables(Recipe.json_schema()), END, after])


def tables(schema: Schema) -> str:
    """Return one heading and table per section; sections of the same kind share one."""
    lines: list[str] = []
    first: dict[str, str] = {}
    methods = {where.rpartition(":")[2]: name for name, where in METHODS.items()}
    for path, section in sections(schema):
        title = path or "Top level"
        kind = str(section["title"])
        if path == "training":
            title += f", method {methods[kind]}"
        elif first.get(kind) == title:  # the same part of another method's settings
            continue
        lines += [f"### {title}", "", _about(section), ""]
        if kind in first:
            lines += [f"The keys are those of [{first[kind]}](#{_anchor(first[kind])}).", ""]
            continue
        first[kind] = title
        meanings = _attributes(section.get("description", ""))
        entries = list(section["properties"].items())
        if path == "training":  # methods share most keys: what a method says itself comes first
            place = {name: index for index, name in enumerate(meanings)}
            entries.sort(key=lambda entry, place=place: place.get(entry[0], len(place)))  # type: ignore[misc]
            meanings = _inherited(METHODS[methods[kind]])
        lines += ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
        lines += [
            _row(schema, name, entry, name in section.get("required", ()), meanings)
            for name, entry in entries
        ]
        lines.append("")
    return "\n".join(lines)


def _inherited(where: str) -> dict[str, str]:
    """Return the meanings of a method's settings, those of the classes above it included."""
    module, _, name = where.partition(":")
    classes = reversed(getattr(import_module(module), name).__mro__)
    found = [_attributes(inspect.cleandoc(one.__doc__ or "")) for one in classes]
    return {key: meaning for meanings in found for key, meaning in meanings.items()}


def _row(
    schema: Schema, name: str, entry: Schema, required: bool, meanings: Mapping[str, str]
) -> str:
    inner = next((found for found, _ in _inners(schema, entry)), None)
    meaning = entry.get("description") or meanings.get(name) or (_about(inner) if inner else "")
    assert meaning, f"recipe key {name} has no description; give its field one"
    filled = inner is not None and isinstance(entry.get("default", {}), dict)
    default = "**required**" if required else "see there" if filled else _shown(entry)
    cells = [f"`{name}`", _values(schema, entry), default, _as_yaml(meaning)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _values(schema: Schema, entry: Schema) -> str:
    """Return what may stand there, in words."""
    if "anyOf" in entry:
        return " or ".join(dict.fromkeys(_values(schema, option) for option in entry["anyOf"]))
    if "$ref" in entry:
        return "section"
    if "enum" in entry or "const" in entry:
        return ", ".join(f"`{value}`" for value in entry.get("enum", [entry.get("const")]))
    kind = entry.get("type", "any")
    if kind == "array":
        items: Schema = entry.get("items") or next(iter(entry.get("prefixItems", ())), {})
        return f"list of {_values(schema, items)}" if items else "list"
    word = {"object": "mapping", "boolean": "`true`, `false`", "string": "text"}.get(kind, kind)
    return f"{word}{_bounds(entry)}"


def _bounds(entry: Schema) -> str:
    limits = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    found = [f"{word} {entry[key]:,}" for key, word in limits.items() if key in entry]
    if "maxLength" in entry:
        found.append(f"at most {entry['maxLength']:,} characters")
    return "".join(f", {part}" for part in found)


def _shown(entry: Schema) -> str:
    return f"`{json.dumps(entry.get('default'))}`" if "default" in entry else "empty"


def _inners(schema: Schema, entry: Schema) -> Iterator[tuple[Schema, bool]]:
    """Yield the sections that may stand under a key, and whether it is a list of them."""
    for option in (entry, *entry.get("anyOf", ())):
        many = option.get("type") == "array"
        found = (option.get("items") or {}) if many else option
        if "$ref" in found:
            yield schema["$defs"][found["$ref"].rpartition("/")[2]], many


def _about(section: Schema) -> str:
    return " ".join(str(section["description"]).split("\n\n")[0].split())


def _attributes(docstring: str) -> dict[str, str]:
    """Return the meanings under "Attributes:" of a docstring, by name."""
    _, _, block = docstring.partition("Attributes:\n")
    block = block.partition("\n\n")[0]
    parts = re.split(r"^ {4}(\w+): ", block, flags=re.MULTILINE)[1:]
    return {
        name: " ".join(text.split())[:1].upper() + " ".join(text.split())[1:]
        for name, text in zip(parts[::2], parts[1::2], strict=True)
    }


def _as_yaml(meaning: str) -> str:
    """Return a docstring's words for values as a recipe spells them."""
    spelled = {"None": "null", "True": "true", "False": "false"}
    return re.sub(r"\b(None|True|False)\b", lambda word: spelled[word[0]], meaning)


def _anchor(title: str) -> str:
    """Return the anchor that Markdown viewers give a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def main() -> int:
    """Write or check the page; return the exit code."""
    written = PAGE.read_text(encoding="utf-8")
    wanted = page(written)
    if "--check" in sys.argv[1:]:
        if written != wanted:
            print("docs/recipe.md is stale; run python tools/recipe_reference.py and commit it")
        return int(written != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
