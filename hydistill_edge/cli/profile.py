"""`hydistill profile`: measure latency on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from hydistill_edge.cli.console import (
    Json,
    milliseconds,
    plain,
    print_json,
    progress,
    stdout,
    table,
    verdict,
)

if TYPE_CHECKING:
    from hydistill_edge.targets.latency import ModeName


def profile(
    subject: Annotated[
        Path, typer.Argument(metavar="RUN|ARTIFACT", help="A run directory or a .hydistill file.")
    ],
    device: Annotated[
        str | None,
        typer.Option(help="Device profile to judge by; default: the artifact's own."),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="demo (3 s in all, advisory), quick (10 s a scope) or full (60 s a scope)."
        ),
    ] = "quick",
    json: Json = False,
) -> None:
    """Measure latency here: engine and frame scope, with the conditions it was measured under.

    Example: hydistill profile runs/widgets --mode full
    """
    from hydistill_edge.profiling import profile as run_profile
    from hydistill_edge.stages.summary import overall

    with progress(quiet=json) as report:
        results = run_profile(subject, device=device, mode=cast("ModeName", mode), report=report)
    passed = overall([gate["passed"] for entry in results.values() for gate in entry["gates"]])
    if json:
        print_json({"passed": passed, "artifacts": results})
    else:
        made = table("artifact", "scope", "p50>", "p90>", "p99>", "n>", "verdict")
        for name, entry in results.items():
            for scope, numbers in (entry["scopes"] or {}).items():
                made.add_row(
                    plain(name),
                    scope,
                    milliseconds(numbers["p50_ms"]),
                    milliseconds(numbers["p90_ms"]),
                    milliseconds(numbers["p99_ms"]),
                    str(numbers["n"]),
                    f"{entry['verdict']}" + (", advisory" if entry["advisory"] else ""),
                )
            if not entry["scopes"]:
                made.add_row(plain(name), plain(entry["note"]), "", "", "", "", verdict(None))
        stdout().print(made)
    if passed is False:
        raise typer.Exit(1)
