"""`hydistill doctor`: what can be built and run here, what not, why, and the remedy."""

from __future__ import annotations

import dataclasses
import importlib.util
import platform

from hydistill_edge.cli.console import Json, print_json, stdout, table


def doctor(json: Json = False) -> None:
    """Say what this machine can build and run, what not, why, and what to do about it.

    Example: hydistill doctor
    """
    from hydistill_edge.errors import ProfileError
    from hydistill_edge.targets.adapters import availability
    from hydistill_edge.targets.profiles import load_profile

    targets = availability()
    training = importlib.util.find_spec("torch") is not None
    name: str | None = None
    try:
        host = load_profile("host")
        name = host.name
        likeness = f"this machine is like the device profile {name} ({host.title})"
    except ProfileError as error:  # an ARM board, for one
        likeness = str(error)
    if json:
        print_json(
            {
                "python": platform.python_version(),
                "machine": platform.machine(),
                "device_profile": name,
                "training": {
                    "usable": training,
                    "remedy": "" if training else 'pip install "hydistill-edge[build]"',
                },
                "targets": [dataclasses.asdict(entry) for entry in targets],
            }
        )
        return
    made = table("part", "build", "run", "why not, and what to do")
    made.add_row(
        "training",
        _yes(training),
        "",
        "" if training else 'torch is not installed: pip install "hydistill-edge\\[build]"',
    )
    for entry in targets:
        versions = ", ".join(f"{name} {version}" for name, version in entry.versions.items())
        reason = ": ".join(part for part in (entry.why, entry.remedy) if part)
        made.add_row(
            entry.target,
            _yes(entry.can_build),
            _yes(entry.can_run),
            (reason or versions).replace("[", "\\["),
        )
    console = stdout()
    console.print(made)
    console.print(likeness, markup=False)


def _yes(value: bool) -> str:
    return "[green]yes[/]" if value else "[yellow]no[/]"
