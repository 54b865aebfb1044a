"""What commands share: printing results, progress and errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]

Report = Callable[[str, int, int, Mapping[str, float]], None]
"""`report(stage, done, total, metrics)`: how a build tells how far it is."""


def stdout() -> Console:
    """Return the console for results."""
    from rich.console import Console

    return Console(highlight=False, emoji=False)


def stderr() -> Console:
    """Return the console for progress and errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, emoji=False)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout; numbers that JSON lacks (NaN) become null."""
    sys.stdout.write(json.dumps(_finite(value), indent=2, default=str) + "\n")


def print_error(text: str, *, kind: str, code: int, as_json: bool) -> None:
    """Print an error on stderr and, with --json, as an object on stdout too."""
    if as_json:
        print_json({"error": {"kind": kind, "message": text, "exit_code": code}})
    console = stderr()
    console.print("[bold red]error:[/]", end=" ")
    console.print(text, markup=False, soft_wrap=True)


def print_warning(text: str) -> None:
    """Print on stderr what a reader of the result must know; nothing where there is nothing."""
    if text:
        console = stderr()
        console.print("[bold yellow]warning:[/]", end=" ")
        console.print(text, markup=False, soft_wrap=True)


def table(*columns: str, title: str | None = None) -> Table:
    """Return an empty table in the house style; a column named "x>" is right-aligned.

    Where the terminal is too narrow, texts are folded; numbers and verdicts stay whole.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(title=title, box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for column in columns:
        right = column.endswith(">")
        made.add_column(
            column.rstrip(">"),
            justify="right" if right else "left",
            overflow="fold",
            no_wrap=right or column in ("gates", "verdict"),
        )
    return made


def plain(text: object) -> str:
    """Return a text of the user's as a table cell shows it: "[dent]" is a name, not markup."""
    from rich.markup import escape

    return escape(str(text))


def percent(value: float | None) -> str:
    """Format a fraction as percent; a number that was not measured is a dash."""
    return "-" if value is None else f"{100 * value:.2f} %"


def points(value: float | None) -> str:
    """Format a difference in percent points, with its sign."""
    return "-" if value is None else f"{value:+.2f}"


def milliseconds(value: float | None) -> str:
    """Format milliseconds with three significant digits."""
    return "-" if value is None else f"{value:.3g} ms"


def verdict(passed: bool | None) -> str:
    """Return the word for a gate's value, in rich markup."""
    return {True: "[green]passed[/]", False: "[red]failed[/]", None: "[yellow]not judged[/]"}[
        passed
    ]


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Report]:
    """Yield a `Report` that draws one bar per stage on stderr."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bars = Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=stderr(),
        disable=quiet,
    )
    tasks: dict[str, Any] = {}

    def report(stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        note = "  ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:3])
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total, note=note)
        bars.update(tasks[stage], completed=done, total=total, note=note)

    with bars:
        yield report


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
