"""`hydistill build`: one recipe, one run directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hydistill_edge.cli.console import (
    Json,
    milliseconds,
    percent,
    plain,
    points,
    print_error,
    print_json,
    print_warning,
    progress,
    stdout,
    table,
    verdict,
)
from hydistill_edge.naming import network_name

if TYPE_CHECKING:
    from hydistill_edge.build import Build


ZOO_WIDTH = 18
"""Characters of the zoo's longest name, which no table breaks."""


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
    from hydistill_edge.family import Family, read_recipe

    loaded = read_recipe(recipe)
    with progress(quiet=json) as report:
        if isinstance(loaded, Family):
            from hydistill_edge.family_build import build_family

            result = build_family(loaded, out=out, only=only, fresh=fresh, report=report)
        else:
            result = run_build(loaded, out=out, only=only, fresh=fresh, report=report)
    show(result, json=json)


def show(result: Build, *, json: bool) -> None:
    """Print a finished build; exit with 1 where a gate said no, or as its failed students ask."""
    if json:
        print_json(result.summary)
    else:
        console = stdout()
        if "students" in result.summary:
            for made in students_tables(result.summary):
                console.print(made)
            report = plain(result.path / "report.html")
            console.print(f"{verdict(result.passed)}  {report}", soft_wrap=True)
        elif result.summary:
            console.print(summary_table(result.summary))
            report = plain(result.path / "report.html")
            console.print(f"{verdict(result.passed)}  {report}", soft_wrap=True)
            print_warning((result.summary.get("overlap") or {}).get("note", ""))
        else:
            console.print(plain(f"done; the run directory is {result.path}"), soft_wrap=True)
    code = show_failures(result.summary.get("students", ()))
    if code or result.passed is False:
        raise typer.Exit(code or 1)


def show_failures(students: Sequence[Mapping[str, Any]]) -> int:
    """Print on stderr why students could not be built; return the exit code, 0 without any."""
    codes = [0]
    for student in students:
        failure = student["failure"]
        if failure is not None:
            codes.append(failure["exit_code"])
            print_error(
                f"student {student['name']}: {failure['message']}",
                kind=failure["kind"],
                code=codes[-1],
                as_json=False,
            )
    return max(codes)


def summary_table(summary: dict[str, Any]) -> Any:
    """Return the summary's artifacts as a table, teacher and student on top."""
    made = table("model", "device", "accuracy>", "agrees>", "p50>", "size>", "gates")
    for role in ("teacher", "student"):
        model = summary.get(role) or {}
        made.add_row(
            role,
            plain(network_name(model.get("arch", ""))),
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


def students_tables(summary: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return several students beside each other, and the artifacts of each.

    Two tables, because one would not fit into the 80 columns of a terminal. Without labelled images
    agreement with the teacher stands in the place of accuracy.
    """
    by_labels = any(student["accuracy"] is not None for student in summary["students"])
    score = "accuracy>" if by_labels else "agrees>"
    made = table("student", "network", score, "gap>", "weights>", "gates")
    made.columns[1].min_width = ZOO_WIDTH
    small = summary["small_network"] or {}
    for role, model in (("teacher", summary["teacher"]), ("small network", small)):
        if model:
            made.add_row(
                role,
                _network(model),
                percent(model["accuracy"] if by_labels else model.get("holdout_agreement")),
                "",
                _parameters(model["params"]),
                "",
            )
    artifacts = table("artifact", "device", score, "p50 ms>", "size>", "gates")
    for student in summary["students"]:
        made.add_row(
            plain(student["name"]),
            _network(student),
            percent(student["accuracy"] if by_labels else student["teacher_agreement"]),
            points(student["gap_points"]),
            _parameters(student["params"]),
            "[red]not built[/]" if student["failure"] else verdict(student["passed"]),
        )
        if student["artifacts"]:
            artifacts.add_row(f"[bold]{plain(student['name'])}[/]")
        for artifact in student["artifacts"]:
            artifacts.add_row(
                f"  {artifact['target']} {artifact['precision']}",
                plain(artifact["device"]),
                percent(artifact["accuracy"] if by_labels else artifact["teacher_agreement"]),
                milliseconds(artifact["latency"]["p50_ms"]).removesuffix(" ms"),
                f"{artifact['bytes'] / 1024:.0f} K",
                verdict(artifact["passed"]),
            )
    return made, artifacts


def _parameters(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.3g} M"


def _network(model: Mapping[str, Any]) -> str:
    return plain(network_name(model["arch"]))
