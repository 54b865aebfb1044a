"""The documentation says what the program does: commands, links, keys, generated pages."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main
import yaml

from hydistill_edge.cli import main
from hydistill_edge.cli.app import app
from hydistill_edge.models.zoo import ZOO
from hydistill_edge.recipe import Recipe
from hydistill_edge.targets.gates import images_needed
from hydistill_edge.targets.profiles import DeviceProfile, list_profiles, load_profile

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "tools" / "bench" / "README.md",
]
CLI_PAGE = ROOT / "docs" / "cli.md"
FILES = {".json", ".html", ".yaml", ".onnx", ".py", ".safetensors"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def tool(name: str) -> ModuleType:
    """Import a script of tools/, which is no package."""
    spec = importlib.util.spec_from_file_location(Path(name).name, ROOT / "tools" / f"{name}.py")
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(command: Any, name: str = "hydistill") -> Iterator[tuple[str, Any]]:
    """Yield every command that the program really has, with its full name."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for part, found in inner.items():
        yield from commands(found, f"{name} {part}")


COMMANDS = dict(commands(typer.main.get_command(app)))


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of one language."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [text for name, text in found if name == language]


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_help_that_ends_in_an_example_of_itself(name: str) -> None:
    lines = (COMMANDS[name].help or "").strip().splitlines()

    assert len(lines) > 2
    assert lines[-1].startswith(f"Example: {name}")


@pytest.mark.parametrize("name", COMMANDS)
def test_command_and_its_options_stand_in_the_reference(name: str) -> None:
    text = CLI_PAGE.read_text(encoding="utf-8")
    section = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]

    options = [max(p.opts, key=len) for p in COMMANDS[name].params if p.opts[0].startswith("-")]
    missing = [flag for flag in options if flag != "--help" and f"`{flag}" not in section]

    assert section, f"{name} has no section"
    assert missing == []


@pytest.mark.parametrize("option", ["help", "debug", "version"])
def test_option_of_the_program_itself_stands_in_the_reference(option: str) -> None:
    assert f"--{option}" in CLI_PAGE.read_text(encoding="utf-8")


def test_cli_reference_is_fresh() -> None:
    wanted = tool("cli_reference").page()

    fresh = CLI_PAGE.read_text(encoding="utf-8") == wanted
    assert fresh, "run python tools/cli_reference.py and commit docs/cli.md"


def test_recipe_reference_is_fresh() -> None:
    reference = tool("recipe_reference")
    written = reference.PAGE.read_text(encoding="utf-8")

    fresh = reference.page(written) == written
    assert fresh, "run python tools/recipe_reference.py and commit docs/recipe.md"


def test_table_of_what_was_measured_is_fresh() -> None:
    table = tool("bench/readme_table")
    written = table.PAGE.read_text(encoding="utf-8")

    fresh = table.page(written) == written
    assert fresh, "run python tools/bench/readme_table.py and commit README.md"


def anchors(page: Path) -> set[str]:
    """Return the anchors that Markdown viewers give the page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    return {title.replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    broken = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)

    assert broken == []


def plain_paths(value: Any, path: str = "") -> Iterator[str]:
    """Yield the keys of a YAML value as paths: `targets.device`."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            name = f"{path}.{key}".lstrip(".")
            yield name
            yield from plain_paths(inner, name)
    if isinstance(value, list):
        for inner in value:
            yield from plain_paths(inner, path)


@pytest.fixture(scope="module")
def recipe_keys() -> set[str]:
    found = tool("recipe_reference").keys(Recipe.json_schema())
    return {key.replace("[]", "") for key in found}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_recipe_keys_named_in_prose_exist(page: Path, recipe_keys: set[str]) -> None:
    if page.name == "run-directory.md":
        return  # its dotted names are keys of summary.json, which tests/test_recipes.py holds
    tops = "|".join(sorted(key for key in recipe_keys if "." not in key))
    named = re.findall(rf"`((?:{tops})(?:\.[a-z_0-9]+)+)`", prose(page))
    files = {name for name in named if Path(name).suffix in FILES}

    assert sorted(set(named) - files - recipe_keys) == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_yaml_on_the_page_is_of_a_recipe_or_a_profile(page: Path, recipe_keys: set[str]) -> None:
    free = (
        *("teacher.options", "student.options", "students.training"),  # keys of their own
        "images.synthetic.inversion.layer_weights",
    )
    profile_keys = {field.name for field in dataclasses.fields(DeviceProfile)}
    for block in blocks(page, "yaml"):
        value = yaml.safe_load(block)
        if "arch" in value:
            assert set(value) <= profile_keys
            continue
        paths = [path for path in plain_paths(value) if not path.startswith(tuple(free))]
        assert sorted(set(paths) - recipe_keys) == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_whole_recipes_and_profiles_on_the_page_are_valid(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "yaml"):
        value = yaml.safe_load(block)
        if "arch" in value:
            file = tmp_path / "profile.yaml"
            file.write_text(block, encoding="utf-8")
            assert load_profile(file).name == value["name"]
        elif {"name", "student", "targets"} <= set(value):
            assert Recipe.parse(block).name == value["name"]


def flags(name: str) -> set[str]:
    """Return every option that a command takes."""
    return {"--help", "--debug", *(flag for p in COMMANDS[name].params for flag in p.opts)}


def wrong(line: str) -> str | None:
    """Return what no command knows of a command line that starts with `hydistill`."""
    name = next((n for n in sorted(COMMANDS, key=len, reverse=True) if line.startswith(n)), None)
    if name is None:
        return None if line == "hydistill --version" else line
    typed = [word.partition("=")[0] for word in shlex.split(line) if word.startswith("--")]
    return line if set(typed) - flags(name) else None


@pytest.mark.parametrize("name", COMMANDS)
def test_example_of_a_command_uses_its_options(name: str) -> None:
    example = (COMMANDS[name].help or "").strip().splitlines()[-1].removeprefix("Example: ")

    assert wrong(example) is None


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_commands_on_the_page_exist(page: Path) -> None:
    shown = "\n".join([*blocks(page, "console"), *blocks(page, "bash")]).splitlines()
    typed = [line.removeprefix("$ ").partition(" #")[0] for line in shown]

    assert [line for line in typed if line.startswith("hydistill") and wrong(line)] == []


def test_every_key_of_a_profile_stands_on_its_page() -> None:
    page = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \|", page, flags=re.MULTILINE)
    told = [name for row in rows for name in re.findall(r"`([a-z_]+)`", row)]

    assert sorted(told) == sorted(field.name for field in dataclasses.fields(DeviceProfile))


@pytest.mark.parametrize("name", list_profiles())
def test_profile_is_printed_as_one_that_can_be_read(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["devices", "show", name]) == 0
    file = tmp_path / "mine.yaml"
    file.write_text(capsys.readouterr().out, encoding="utf-8")

    assert load_profile(file) == load_profile(name)


def test_zoo_on_the_page_of_recipes_is_the_zoo() -> None:
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    told = page.partition("scaled by `student.width`:")[2].partition(".\n")[0]

    assert re.findall(r"`(\w+)`", told) == list(ZOO)


def test_numbers_of_images_on_the_page_of_gates_are_right() -> None:
    page = (ROOT / "docs" / "gates.md").read_text(encoding="utf-8")
    table = page.partition("| misses |")[2].partition("\n\n")[0]
    rows = [[int(cell) for cell in row.split("|")[1:-1]] for row in table.splitlines()[2:]]

    assert len(rows) == 4
    for misses, *told in rows:
        assert told == [images_needed(misses, limit) for limit in (0.95, 0.985, 0.99)]
