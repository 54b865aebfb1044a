"""`hydistill bundle`: look into a bundle, verify it, unpack it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from hydistill_edge.cli.console import Json, print_json, stdout, table

app = typer.Typer(help="Look into a bundle, verify it, unpack it.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="A .hydistill file.", show_default=False)]


@app.command()
def inspect(file: File, json: Json = False) -> None:
    """Show a bundle's manifest without unpacking anything.

    Example: hydistill bundle inspect widgets.hydistill
    """
    from hydistill_edge.bundle.pack import inspect as read

    manifest = dataclasses.asdict(read(file))
    if json:
        print_json(manifest)
        return
    made = table("file", "role", "bytes>", "sha256")
    for entry in manifest["files"]:
        made.add_row(entry["path"], entry["role"], f"{entry['size']:,}", entry["sha256"][:16])
    console = stdout()
    facts = ("name", "version", "target", "device", "precision")
    console.print("  ".join(f"{fact}: {manifest[fact]}" for fact in facts), markup=False)
    console.print(made)


@app.command()
def verify(file: File, json: Json = False) -> None:
    """Check that every byte of a bundle is what its manifest says.

    Example: hydistill bundle verify widgets.hydistill
    """
    from hydistill_edge.bundle.pack import verify as check

    manifest = check(file)
    if json:
        print_json({"valid": True, "name": manifest.name, "files": len(manifest.files)})
    else:
        text = f"{file}: whole, {len(manifest.files)} files as the manifest says"
        stdout().print(text, markup=False, soft_wrap=True)


@app.command()
def unpack(
    file: File,
    out: Annotated[Path, typer.Option(help="A folder that does not exist yet.")],
    json: Json = False,
) -> None:
    """Unpack a bundle into a new folder, after checking it.

    Example: hydistill bundle unpack widgets.hydistill --out widgets/
    """
    from hydistill_edge.bundle.pack import unpack as extract

    manifest = extract(file, out)
    if json:
        print_json({"folder": str(out), "files": [entry.path for entry in manifest.files]})
    else:
        text = f"unpacked {len(manifest.files)} files into {out}"
        stdout().print(text, markup=False, soft_wrap=True)
