"""`hydistill devices`: the device profiles."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from hydistill_edge.cli.console import Json, print_json, stdout, table

app = typer.Typer(
    help="Device profiles: what a device is, and how fast it must answer.", no_args_is_help=True
)

Name = Annotated[
    str, typer.Argument(help='A profile\'s name, its YAML file, or "host".', show_default=False)
]


@app.command("list")
def list_devices(json: Json = False) -> None:
    """List the packaged profiles.

    Example: hydistill devices list
    """
    from hydistill_edge.targets.profiles import list_profiles, load_profile

    profiles = [load_profile(name) for name in list_profiles()]
    if json:
        print_json([dataclasses.asdict(profile) for profile in profiles])
        return
    made = table("name", "device", "arch", "threads>", "targets")
    for profile in profiles:
        targets = ", ".join(entry.target for entry in profile.targets)
        made.add_row(profile.name, profile.title, profile.arch, str(profile.threads), targets)
    stdout().print(made)


@app.command()
def show(name: Name, json: Json = False) -> None:
    """Show one profile in full.

    Example: hydistill devices show raspberry-pi-5
    """
    import yaml

    from hydistill_edge.targets.profiles import load_profile

    profile = load_profile(name)
    if json:
        print_json(dataclasses.asdict(profile))
    else:
        stdout().print(
            yaml.safe_dump(dataclasses.asdict(profile), sort_keys=False),
            markup=False,
            end="",
            soft_wrap=True,  # a long line that is wrapped is no YAML any more
        )


@app.command()
def check(name: Name, json: Json = False) -> None:
    """Say whether this machine is such a device; exit with 1 where it is not.

    Example: hydistill devices check x86-vnni
    """
    from hydistill_edge.targets.profiles import check_host, load_profile

    profile = load_profile(name)
    mismatches = check_host(profile)
    if json:
        print_json({"device": profile.name, "matches": not mismatches, "mismatches": mismatches})
    elif mismatches:
        console = stdout()
        console.print(f"this machine is no {profile.name}:")
        for mismatch in mismatches:
            console.print(f"  {mismatch}", markup=False)
    else:
        stdout().print(f"this machine matches {profile.name}")
    if mismatches:
        raise typer.Exit(1)
