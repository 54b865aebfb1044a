"""`hydistill demo`: the whole main job on data that comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hydistill_edge.cli.build import show
from hydistill_edge.cli.console import Json, progress


def demo(
    out: Annotated[Path, typer.Option(help="Run directory.")] = Path("demo-run"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Redo stages that are done.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random choice.")] = 0,
    json: Json = False,
) -> None:
    """Run the main job on scanned digits: no download, a minute or two on two cores.

    Trains a teacher, throws its images away but for 100 unlabelled ones, then distills, quantizes,
    proves, measures and packs a student for three runtimes.

    Example: hydistill demo --out demo-run
    """
    from hydistill_edge.demo import run_demo

    with progress(quiet=json) as report:
        result = run_demo(out, seed=seed, fresh=fresh, report=report)
    show(result, json=json)
