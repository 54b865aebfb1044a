"""`hydistill keys`: share which layers of a teacher mattered, signed and without images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hydistill_edge.cli.console import Json, plain, print_json, stdout, table

app = typer.Typer(
    help="Share which layers of a teacher mattered, signed and without images.",
    no_args_is_help=True,
)

Trust = Annotated[
    list[Path],
    typer.Option(help="Public key of a site that is trusted; may be repeated.", show_default=False),
]


@app.command()
def new(
    out: Annotated[Path, typer.Option(help="File of the private key.")] = Path("site.pem"),
    json: Json = False,
) -> None:
    """Make a pair of keys: a private one to sign with, and a public one to hand to other sites.

    Example: hydistill keys new --out munich.pem
    """
    from hydistill_edge.key_sharing import new_keys

    public, name = new_keys(out)
    if json:
        print_json({"private": str(out), "public": str(public), "key": name})
        return
    for line in (f"private key: {out} (keep it)", f"public key {name}: {public} (hand it out)"):
        stdout().print(line, markup=False, soft_wrap=True)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run directory of method rtk.", show_default=False)],
    key: Annotated[Path, typer.Option(help="Private key to sign with.", show_default=False)],
    site: Annotated[str, typer.Option(help="Name of this site.", show_default=False)],
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("keys.signed.json"),
    json: Json = False,
) -> None:
    """Write the influences of a run's layers, signed; no image, no map, nothing by class.

    Example: hydistill keys export runs/widgets --key munich.pem --site munich
    """
    from hydistill_edge.key_sharing import export_keys

    shared = export_keys(run, out, key=key, site=site)
    if json:
        print_json({"file": str(out), **shared})
        return
    text = f"{len(shared['layers'])} layers, learned from {shared['images']} images, in {out}"
    stdout().print(text, markup=False, soft_wrap=True)


@app.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument(help="A signed export.", show_default=False)],
    trust: Trust,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the influences here, without signature.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Check the signature of another site's export, and show what it holds.

    Example: hydistill keys import lyon.signed.json --trust lyon.pem.pub
    """
    from hydistill_edge.key_sharing import import_keys

    found = import_keys(file, trusted=trust, out=out)
    if json:
        print_json({"site": found.site, "key": found.key_id, "document": found.document})
        return
    console = stdout()
    made = table("layer", "influence>", "kept")
    for row in found.document["layers"]:
        made.add_row(plain(row["layer"]), f"{row['influence']:.4f}", "yes" if row["chosen"] else "")
    text = f"signed by {found.site} (key {found.key_id}), {found.document['images']} images"
    console.print(text, markup=False, soft_wrap=True)
    console.print(made)


@app.command()
def compare(
    files: Annotated[
        list[Path], typer.Argument(help="Signed exports of one teacher.", show_default=False)
    ],
    trust: Trust,
    threshold: Annotated[
        float, typer.Option(help="Keep layers at so many times the mean influence.", min=0.0)
    ] = 1.0,
    json: Json = False,
) -> None:
    """Hold the influences of several sites against each other, and pool them by their images.

    Example: hydistill keys compare lyon.json munich.json --trust lyon.pub --trust munich.pub
    """
    from hydistill_edge.key_sharing import compare_keys

    pooled = compare_keys(files, trusted=trust, factor=threshold)
    if json:
        print_json(pooled)
        return
    console = stdout()
    sites = pooled["sites"]
    made = table("layer", *(f"{plain(site['site'])}>" for site in sites), "pooled>", "kept at>")
    for place, row in enumerate(pooled["layers"]):
        made.add_row(
            plain(row["layer"]),
            *(f"{site['influences'][place]:.4f}" for site in sites),
            f"{row['influence']:.4f}",
            f"{row['chosen_at']} of {len(sites)}",
        )
    console.print(made)
    text = f"for the next build: training.keys: [{', '.join(pooled['keys'])}]"
    console.print(text, markup=False, soft_wrap=True)
