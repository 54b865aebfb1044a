"""`hydistill build`: one recipe, one run directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hydistill_edge.cli.console import (
    Json,
    milliseconds,
    percent,
    plain,
    print_json,
    progress,
    stdout,
    table,
    verdict,
)

if TYPE_CHECKING:
    from hydistill_edge.build import Build


def build(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Run directory; default runs/<name of the recipe>.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="Run one stage alone: teacher, images, student, graph, calibration, targets, "
            "parity, latency, evaluation, bundle or report."
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Redo stages that are done.")] = False,
    json: Json = False,
) -> None:
    """Build the artifacts that a recipe asks for, with their evidence.

    A build that was stopped goes on where it was; stages that are whole and unchanged are skipped.

    Example: hydistill build recipe.yaml --out runs/widgets
    """
    from hydistill_edge.build import build as run_build
    from hydistill_edge.recipe import Recipe

    loaded = Recipe.load(recipe)
    with progress(quiet=json) as report:
        result = run_build(loaded, out=out, only=only, fresh=fresh, report=report)
    show(result, json=json)


def show(result: Build, *, json: bool) -> None:
    """Print a finished build; exit with 1 where a gate said no."""
    if json:
        print_json(result.summary)
    else:
        console = stdout()
        if result.summary:
            console.print(summary_table(result.summary))
            report = plain(result.path / "report.html")
            console.print(f"{verdict(result.passed)}  {report}", soft_wrap=True)
        else:
            console.print(plain(f"done; the run directory is {result.path}"), soft_wrap=True)
    if result.passed is False:
        raise typer.Exit(1)


def summary_table(summary: dict[str, Any]) -> Any:
    """Return the summary's artifacts as a table, teacher and student on top."""
    made = table("model", "device", "accuracy>", "agrees>", "p50>", "size>", "gates")
    for role in ("teacher", "student"):
        model = summary.get(role) or {}
        made.add_row(
            role,
            plain(model.get("arch", "")).removeprefix("zoo:"),
            percent(model.get("accuracy")),
            "" if role == "teacher" else percent(model.get("teacher_agreement")),
            "",
            f"{model.get('params', 0) / 1e6:.3g} M",
            "",
        )
    for artifact in summary["artifacts"]:
        latency = artifact.get("latency") or {}
        made.add_row(
            f"{artifact['target']} {artifact['precision']}",
            artifact["device"],
            percent(artifact.get("accuracy")),
            percent(artifact.get("teacher_agreement")),
            milliseconds(latency.get("p50_ms")),
            f"{artifact['bytes'] / 1024:.0f} K",
            verdict(artifact["passed"]),
        )
    return made
