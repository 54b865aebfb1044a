"""Packaged recipes, ready to copy."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path

from hydistill_edge.atomic import write_text
from hydistill_edge.errors import UsageError


def list_recipes() -> dict[str, str]:
    """Return the packaged recipes, sorted by name, with the first sentence of each."""
    return {name: _first_comment(read_recipe(name)) for name in _names()}


def read_recipe(name: str) -> str:
    """Return the text of a packaged recipe.

    Raises:
        UsageError: there is none of this name; the known ones are listed.
    """
    if name not in _names():
        close = difflib.get_close_matches(name, _names(), n=1)
        hint = f'; did you mean "{close[0]}"?' if close else ""
        raise UsageError(
            f'there is no packaged recipe "{name}"{hint} (known: {", ".join(_names())})'
        )
    return resources.files(__name__).joinpath(f"{name}.yaml").read_text("utf-8")


def copy_recipe(name: str, out: Path, *, replace: bool = False) -> Path:
    """Write a packaged recipe to a file of the user's own.

    Args:
        name: of the recipe.
        out: the file, or an existing folder to put it in as `<name>.yaml`.
        replace: whether an existing file may be replaced.

    Returns:
        The file.

    Raises:
        UsageError: no such recipe, or the file exists.
        NoSpaceError: the disk is full.
    """
    text = read_recipe(name)
    file = out / f"{name}.yaml" if out.is_dir() else out
    if file.exists() and not replace:
        raise UsageError(f"{file} exists already; give another --out, or --force to replace it")
    write_text(file, text)
    return file


def _names() -> list[str]:
    files = [Path(entry.name) for entry in resources.files(__name__).iterdir()]
    return sorted(file.stem for file in files if file.suffix == ".yaml")


def _first_comment(text: str) -> str:
    return text.splitlines()[0].lstrip("# ")
