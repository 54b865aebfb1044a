"""`hydistill inspect`: what a teacher file is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hydistill_edge.cli.console import Json, print_json, stdout, table

Weights = Annotated[
    Path,
    typer.Argument(help="safetensors, .pt (weights only) or .onnx file.", show_default=False),
]
Architecture = Annotated[
    str | None,
    typer.Option(
        help='"torchvision:NAME", "zoo:NAME" or "my_net.py:build"; not for .onnx.',
        show_default=False,
    ),
]
Size = Annotated[
    int | None, typer.Option(help="Input size in pixels; read from the file for .onnx.", min=8)
]
Channels = Annotated[int | None, typer.Option(help="Input channels, 1 or 3.", min=1, max=3)]
Classes = Annotated[
    Path | None, typer.Option(help="Text file with one class name per line.", show_default=False)
]
Option = Annotated[
    list[str] | None,
    typer.Option(
        "--option", help="NAME=VALUE for the architecture's factory; may stand more than once."
    ),
]


def inspect(
    weights: Weights,
    architecture: Architecture = None,
    size: Size = None,
    channels: Channels = None,
    classes: Classes = None,
    option: Option = None,
    json: Json = False,
) -> None:
    """Show a teacher: input, classes, parameters, MACs, taps, batch norms.

    Example: hydistill inspect teacher.safetensors --architecture torchvision:resnet18 --size 64
    """
    from hydistill_edge.inspection import inspect_teacher

    facts = inspect_teacher(
        weights,
        architecture=architecture,
        size=size,
        channels=channels,
        classes=classes,
        options=parse_options(option or []),
    )
    if json:
        print_json(facts)
        return
    made = table("fact", "value")
    for name, value in facts.items():
        made.add_row(name.replace("_", " "), _shown(value))
    stdout().print(made, markup=False)


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """Return NAME=VALUE pairs as keyword arguments; values are read as YAML scalars."""
    import yaml

    from hydistill_edge.errors import UsageError

    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f'--option "{pair}": expected NAME=VALUE, e.g. --option width=0.5')
        try:
            options[name] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:
            raise UsageError(f'--option "{pair}": its value is no YAML; quote it') from error
    return options


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
