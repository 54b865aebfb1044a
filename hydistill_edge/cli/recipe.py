"""`hydistill recipe`: packaged recipes to start from, a check of your own, and the schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hydistill_edge.cli.console import Json, print_json, stdout, table

app = typer.Typer(
    help="List and copy the packaged recipes; check one; print the schema for editors.",
    no_args_is_help=True,
)


@app.command("list")
def list_packaged(json: Json = False) -> None:
    """List the packaged recipes.

    Example: hydistill recipe list
    """
    from hydistill_edge.recipes import list_recipes

    found = list_recipes()
    if json:
        print_json([{"name": name, "about": about} for name, about in found.items()])
        return
    made = table("name", "about")
    for name, about in found.items():
        made.add_row(name, about)
    stdout().print(made)


@app.command()
def copy(
    name: Annotated[str, typer.Argument(help="A packaged recipe's name.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="File or folder to write to; default <name>.yaml.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    json: Json = False,
) -> None:
    """Copy a packaged recipe into a file of your own.

    Example: hydistill recipe copy teacher_only --out recipe.yaml
    """
    from hydistill_edge.recipes import copy_recipe

    file = copy_recipe(name, out or Path(f"{name}.yaml"), replace=force)
    if json:
        print_json({"recipe": str(file)})
    else:
        stdout().print(
            f"wrote {file}; put the files that it names beside it, then run: "
            f"hydistill build {file}",
            markup=False,
            soft_wrap=True,
        )


@app.command()
def check(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)],
    json: Json = False,
) -> None:
    """Check a recipe without building it, and show it with every default written out.

    Example: hydistill recipe check recipe.yaml
    """
    from hydistill_edge.family import read_recipe

    loaded = read_recipe(recipe)
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
