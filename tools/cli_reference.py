"""Write docs/cli.md from the program itself, so that the page cannot say what the program does not.

    python tools/cli_reference.py           write the page
    python tools/cli_reference.py --check   say whether it is stale (exit code 1), write nothing

The page is made from the signatures and docstrings of the commands, not from the text of `--help`:
that depends on the terminal's width and on the versions of the libraries that draw it.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from typer import Typer
from typer.models import ArgumentInfo, OptionInfo

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
PROGRAM = "hydistill"
WIDTH = 100
EXAMPLE = "Example: "
KINDS = {Path: "PATH", str: "TEXT", int: "INTEGER", float: "NUMBER"}

INTRODUCTION = """\
# The command line

<!-- Written by tools/cli_reference.py from the program; change the commands, not this page. -->

`hydistill COMMAND --help` says the same in the terminal. Results go to stdout, as JSON with
`--json`; progress bars and errors go to stderr.

| exit code | means |
| --- | --- |
| 0 | no gate said no |
| 1 | a gate said no: the result is there, and it is not good enough |
| 2 | wrong usage: an option, a recipe, a file that cannot be used |
| 3 | something is missing here: a file, a package, a runtime, space on the disk |
| 4 | a fault of ours |
| 130 | stopped by Ctrl-C; the same command goes on where it was |

`--debug` shows the traceback of an error; `hydistill --version` prints the version.
"""


@dataclass(frozen=True)
class Command:
    """One command of the program: its name with those of its groups, and its function."""

    name: str
    function: Callable[..., Any]

    @property
    def paragraphs(self) -> list[str]:
        """The docstring's paragraphs, each on one line; the last is the example."""
        text = inspect.getdoc(self.function) or ""
        return [" ".join(part.split()) for part in text.split("\n\n")]


@dataclass(frozen=True)
class Parameter:
    """One argument or option, as a reader types it, and what it does."""

    usage: str
    help: str
    is_option: bool
    required: bool


def commands(app: Typer, prefix: str = PROGRAM) -> Iterator[Command]:
    """Yield every command, those of groups included, in the order of `--help`."""
    for entry in app.registered_commands:
        assert entry.callback is not None
        name = entry.name or entry.callback.__name__.replace("_", "-")
        yield Command(f"{prefix} {name}", entry.callback)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance, f"{prefix} {group.name}")


def parameters(command: Command) -> Iterator[Parameter]:
    """Yield the command's arguments and options in the order of its signature."""
    hints = get_type_hints(command.function, include_extras=True)
    for name, parameter in inspect.signature(command.function).parameters.items():
        kind, info = get_args(hints[name])
        default = parameter.default
        if isinstance(info, ArgumentInfo):
            yield Parameter(info.metavar or name.upper(), info.help or "", False, True)
        elif isinstance(info, OptionInfo):
            flag = next(iter(info.param_decls or ()), f"--{name.replace('_', '-')}")
            words = [info.help or "", *_range(info), *_default(default)]
            usage = flag if kind is bool else f"{flag} {_kind(kind)}"
            required = default is inspect.Parameter.empty
            yield Parameter(usage, " ".join(filter(None, words)), True, required)


def page() -> str:
    """Return the whole page."""
    from hydistill_edge.cli.app import app

    found = list(commands(app))
    index = [f"- [`{each.name}`](#{each.name.replace(' ', '-')})" for each in found]
    sections = [INTRODUCTION, "\n".join(index) + "\n", *(_section(each) for each in found)]
    return "\n".join(sections)


def _section(command: Command) -> str:
    *about, example = command.paragraphs
    assert example.startswith(EXAMPLE), f"{command.name}: its help must end in an example"
    taken = list(parameters(command))
    arguments = [each.usage for each in taken if not each.is_option]
    required = [each.usage for each in taken if each.is_option and each.required]
    optional = ["[OPTIONS]"] if any(each.is_option and not each.required for each in taken) else []
    lines = [
        f"## {command.name}",
        "",
        *(line for part in about for line in [*textwrap.wrap(part, WIDTH), ""]),
        "```text",
        " ".join([command.name, *arguments, *required, *optional]),
        "```",
        "",
        *(line for each in taken for line in _bullet(each)),
        "" if taken else None,
        "```console",
        f"$ {example.removeprefix(EXAMPLE)}",
        "```",
        "",
    ]
    return "\n".join(line for line in lines if line is not None)


def _bullet(parameter: Parameter) -> list[str]:
    text = f"- `{parameter.usage}`: {parameter.help}"
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _kind(kind: Any) -> str:
    """Return the placeholder of an option's value; `X | None` is that of X."""
    for plain in [each for each in get_args(kind) if each is not NoneType] or [kind]:
        if plain in KINDS:
            return KINDS[plain]
    return _kind(get_args(get_args(kind)[0])[0]) + " ..."  # list[X] | None: may stand repeatedly


def _range(info: OptionInfo) -> list[str]:
    bounds = (("from", info.min), ("to", info.max))
    parts = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
    return [f"({' '.join(parts)})"] if parts else []


def _default(default: Any) -> list[str]:
    hidden = default in (inspect.Parameter.empty, None) or isinstance(default, bool)
    return [] if hidden else [f"Default: `{default}`."]


def main() -> int:
    """Write or check the page; return the exit code."""
    wanted = page()
    if "--check" in sys.argv[1:]:
        stale = not PAGE.exists() or PAGE.read_text(encoding="utf-8") != wanted
        if stale:
            print("docs/cli.md is stale; run python tools/cli_reference.py and commit it")
        return int(stale)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
