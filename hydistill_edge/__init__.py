"""Build edge-ready models from a teacher, without its training data.

    from hydistill_edge import Recipe, build

    result = build(Recipe.load("recipe.yaml"), out="runs/widgets")

Importing this package is cheap: neither torch nor a runtime is loaded before it is needed.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydistill_edge.build import Build, build
    from hydistill_edge.recipe import Recipe

__all__ = ["Build", "Recipe", "__version__", "build"]

__version__ = "0.1.0"

_HOME = {
    "Build": "hydistill_edge.build",
    "Recipe": "hydistill_edge.recipe",
    "build": "hydistill_edge.build",
}


class _Package(ModuleType):
    """This package: `build` is the function, also after the module of that name was imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):  # what importing build.py does
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
