"""`hydistill init`: look at a teacher and write a commented recipe for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hydistill_edge.cli.console import Json, print_json, stdout
from hydistill_edge.cli.inspect import (
    Architecture,
    Channels,
    Classes,
    Option,
    Size,
    Weights,
    parse_options,
)


def init(
    weights: Weights,
    architecture: Architecture = None,
    size: Size = None,
    channels: Channels = None,
    classes: Classes = None,
    option: Option = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder, .npz or .tar of a few real images.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="Device profile to build for.")] = "host",
    out: Annotated[Path, typer.Option(help="The recipe to write.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing recipe.")] = False,
    json: Json = False,
) -> None:
    """Inspect a teacher file and write a commented recipe, ready for `hydistill build`.

    Example: hydistill init teacher.onnx --images pilot/ --out recipe.yaml
    """
    from hydistill_edge.inspection import write_recipe

    facts = write_recipe(
        out,
        weights,
        architecture=architecture,
        size=size,
        channels=channels,
        classes=classes,
        options=parse_options(option or []),
        images=images,
        device=device,
        replace=force,
    )
    if json:
        print_json({"recipe": str(out), "teacher": facts})
    else:
        stdout().print(
            f"wrote {out}; look through it, then run: hydistill build {out}",
            markup=False,
            soft_wrap=True,
        )
