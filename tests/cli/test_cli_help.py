"""Every command explains itself, with an example."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_type_hints

import pytest
from typer import Typer

from hydistill_edge import __version__
from hydistill_edge.cli.app import app


def command_lines(group: Typer, *above: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command, those of groups included."""
    for command in group.registered_commands:
        assert command.callback is not None
        yield (*above, command.name or command.callback.__name__)
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from command_lines(inner.typer_instance, *above, str(inner.name))


COMMANDS = list(command_lines(app))


def test_commands_are_these() -> None:
    assert {words[0] for words in COMMANDS} >= {
        *("demo", "init", "inspect", "build", "evaluate", "verify", "profile", "review"),
        *("bundle", "devices", "doctor", "keys", "recipe"),
    }


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_ends_in_an_example_of_the_command(words: tuple[str, ...], hydistill: Any) -> None:
    answer = hydistill(*words, "--help")
    assert answer.code == 0
    assert f"Example: hydistill {' '.join(words)}" in " ".join(answer.out.split())


def test_help_of_the_program_names_exit_codes_and_an_example(hydistill: Any) -> None:
    text = " ".join(hydistill("--help").out.split())
    assert "Exit codes: 0 no gate said no, 1 a gate said no" in text
    assert "Example: hydistill demo" in text


def test_program_without_a_command_shows_its_help_and_no_empty_error(hydistill: Any) -> None:
    answer = hydistill()
    assert (answer.code, answer.err) == (2, "")
    assert "Usage: hydistill" in answer.out


def test_help_of_profile_says_how_long_each_scope_is_measured() -> None:
    from hydistill_edge.cli.profile import profile
    from hydistill_edge.targets.latency import MODES

    text = get_type_hints(profile, include_extras=True)["mode"].__metadata__[0].help

    for name in ("quick", "full"):
        assert f"{name} ({MODES[name].seconds:g} s a scope)" in text
    assert "demo (3 s in all, advisory)" in text


def test_version_is_the_packages(hydistill: Any) -> None:
    assert hydistill("--version").out == f"{__version__}\n"
