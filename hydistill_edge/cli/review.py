"""`hydistill review`: let people decide on the images of a pool."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hydistill_edge.cli.console import Json, percent, plain, print_json, stdout, table

if TYPE_CHECKING:
    from hydistill_edge.review import Outcome


def review(
    run: Annotated[
        Path, typer.Argument(help="A run directory, built with method kd3.", show_default=False)
    ],
    decisions: Annotated[
        Path | None,
        typer.Option(help="A filled sheet (CSV or JSON) to read back.", show_default=False),
    ] = None,
    count: Annotated[int, typer.Option(help="Borderline images on the sheet.", min=1)] = 100,
    json: Json = False,
) -> None:
    """Write a sheet of borderline images to accept, reject or delete, or read the decisions back.

    Example: hydistill review runs/widgets
    """
    from hydistill_edge.review import take_decisions, write_review

    if decisions is not None:
        outcome = take_decisions(run, decisions)
        if json:
            print_json(asdict(outcome))
        else:
            _show(outcome)
        return
    sheet = write_review(run, count=count)
    if json:
        print_json(asdict(sheet))
        return
    text = f"{len(sheet.queue)} images to decide on, {sheet.decided} decided before: {sheet.page}"
    stdout().print(text, markup=False, soft_wrap=True)
    text = f"decide there, or in {sheet.sheet}, then: hydistill review {run} --decisions FILE"
    stdout().print(text, markup=False, soft_wrap=True)


def _show(outcome: Outcome) -> None:
    console = stdout()
    made = table("class", "accepted of selected>")
    for name, value in outcome.precision.items():
        if value is not None:
            made.add_row(plain(name), percent(value))
    if made.row_count:
        console.print(made)
    lines = [
        f"{outcome.accepted} accepted, {outcome.rejected} rejected, {len(outcome.deleted)} deleted "
        "from the transfer set",
        f"for the next build: training.decisions: {outcome.file}",
    ]
    if outcome.exclude is not None:
        lines.append(f"keep deleted images out: exclude: {outcome.exclude} in their image source")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
