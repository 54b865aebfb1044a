"""A family: one recipe file for several students of one teacher, one per class of devices.

    students:
      - {name: camera, student: {architecture: resnet8}}
      - {name: gateway, student: {architecture: resnet18, width: 0.5}, method: arch_overfitting}

Teacher, images and all other sections are those of the file; each student has its own network, and
may have its own method, training and targets. Each of them is a whole recipe of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from hydistill_edge.errors import RecipeError
from hydistill_edge.recipe import (
    Member,
    Recipe,
    parse_mapping,
    problems_of,
    read_text,
    refuse_missing,
)
from hydistill_edge.yaml_lines import KeyPath

OWN = ("student", "method", "training", "targets")
"""Sections of which every student may have its own."""


@dataclass(frozen=True)
class Family:
    """Several students of one teacher and one transfer set.

    Attributes:
        name: of the build.
        members: name -> recipe, in the order of the file; at least one.
    """

    name: str
    members: Mapping[str, Recipe]

    @classmethod
    def load(cls, path: str | Path) -> Family:
        """Read a recipe file that has `students`; see `Recipe.load`.

        Raises:
            RecipeError: every problem at once, with line and key.
            MissingFileError: the recipe itself, or files that it names, do not exist.
        """
        path = Path(path)
        return cls._checked(path, cls.parse(read_text(path), name=str(path), base=path.parent))

    @classmethod
    def _checked(cls, path: Path, family: Family) -> Family:
        files = [file for recipe in family.members.values() for file in recipe.files()]
        refuse_missing(path, dict.fromkeys(files))
        return family

    @classmethod
    def parse(cls, text: str, *, name: str = "recipe", base: Path | None = None) -> Family:
        """Read a recipe with `students` from a text; see `load`. Files are not looked for."""
        value, lines = parse_mapping(text, name=name)
        try:
            entries = TypeAdapter(tuple[Member, ...]).validate_python(value.get("students"))
        except ValidationError as error:
            raise RecipeError(list(problems_of(error, lines, ("students",))), path=name) from error
        problems = list(_entry_problems(value, entries))
        members: dict[str, Recipe] = {}
        for index, entry in enumerate(entries):
            own = {key: value["students"][index][key] for key in OWN if key in entry.given()}

            def place(path: KeyPath, index: int = index, own: Mapping[str, Any] = own) -> KeyPath:
                return ("students", index, *path) if path and path[0] in own else path

            whole = _whole(value, entry.name, own)
            recipe, found = Recipe.check(whole, lines, base=base, place=place)
            problems += found
            if recipe is not None:
                members[entry.name] = recipe
        if problems:
            # What is wrong with a section that all share would be told once for each.
            raise RecipeError(list(dict.fromkeys(problems)), path=name)
        return cls(str(value["name"]), members)

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved recipe as plain values, every default written out."""
        wholes = {name: recipe.to_dict() for name, recipe in self.members.items()}
        shared = {**next(iter(wholes.values())), "name": self.name}
        students = [
            {"name": name, **{key: whole[key] for key in OWN}} for name, whole in wholes.items()
        ]
        return {**{key: shared[key] for key in shared if key not in OWN}, "students": students}

    def to_yaml(self) -> str:
        """Return the resolved recipe: every default written out."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def read_recipe(path: str | Path) -> Recipe | Family:
    """Read a recipe file, of one student or of several.

    Raises:
        RecipeError: every problem at once, with line and key.
        MissingFileError: the recipe itself, or files that it names, do not exist.
    """
    path = Path(path)
    value, _lines = parse_mapping(read_text(path), name=str(path))
    return Family.load(path) if "students" in value else Recipe.load(path)


def _whole(value: Mapping[str, Any], name: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the file's sections with a student's own ones in their place."""
    whole = {key: value[key] for key in value if key != "students"}
    training = whole.pop("training", None)
    if own.get("method", whole.get("method", "kd")) != whole.get("method", "kd"):
        training = None  # the keys of another method
    if isinstance(own.get("training"), Mapping) and isinstance(training, Mapping):
        own = {**own, "training": {**training, **own["training"]}}
    elif training is not None and "training" not in own:
        whole["training"] = training
    if isinstance(whole.get("name"), str):
        whole["name"] = f"{whole['name']}-{name}"
    return {**whole, **own}


def _entry_problems(value: Mapping[str, Any], entries: tuple[Member, ...]) -> Iterator[str]:
    """Yield what is wrong with the list itself."""
    if not entries:
        yield "students: the list is empty; give at least one, or one student section instead"
    if "student" in value:
        yield "student: one student beside the list of students; put it into the list, or remove it"
    names = [entry.name for entry in entries]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f'students: the name "{name}" stands twice; give each student its own'
