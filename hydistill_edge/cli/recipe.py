"""`hydistill recipe`: check a recipe, or print the schema of recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hydistill_edge.cli.console import Json, print_json, stdout

app = typer.Typer(help="Check a recipe; print the JSON schema for editors.", no_args_is_help=True)


@app.command()
def check(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)],
    json: Json = False,
) -> None:
    """Check a recipe without building it, and show it with every default written out.

    Example: hydistill recipe check recipe.yaml
    """
    from hydistill_edge.recipe import Recipe

    loaded = Recipe.load(recipe)
    if json:
        print_json({"valid": True, "recipe": loaded.to_dict()})
    else:
        stdout().print(loaded.to_yaml(), markup=False, end="", soft_wrap=True)


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for completion and checks in an editor.

    Example: hydistill recipe schema > recipe.schema.json
    """
    from hydistill_edge.recipe import Recipe

    print_json(Recipe.json_schema())
