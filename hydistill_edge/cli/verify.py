"""`hydistill verify`: prove the artifacts of a run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hydistill_edge.cli.console import Json, plain, print_json, progress, stdout, table, verdict


def verify(
    run: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    json: Json = False,
) -> None:
    """Run the parity ladder again on every artifact of a run; exit with 1 where one fails.

    Example: hydistill verify runs/widgets
    """
    from hydistill_edge.build import verify as run_verification
    from hydistill_edge.stages.summary import overall

    with progress(quiet=json) as report:
        reports = run_verification(run, report=report)
    passed = overall([entry["passed"] for entry in reports.values()])
    if json:
        print_json({"passed": passed, "artifacts": reports})
    else:
        made = table("artifact", "rung", "source", "n>", "verdict", "why")
        for name, entry in reports.items():
            for rung in entry["rungs"]:
                reasons = [gate["why"] for gate in rung["gates"] if gate["passed"] is not True]
                made.add_row(
                    name,
                    f"{rung['rung']} {rung['title']}",
                    rung["source"],
                    str(rung["n"]),
                    verdict(rung["passed"]),
                    plain("; ".join(reason for reason in reasons if reason) or rung["note"]),
                )
        stdout().print(made)
    if passed is False:
        raise typer.Exit(1)
