"""How an architecture is named to people: short, and without the folders of whoever built it."""

from __future__ import annotations

from pathlib import PurePath

FORM_PREFIXES = ("projected:", "slimmed:")
"""In front of an architecture's name: what our own code does with the network."""


def network_name(architecture: str) -> str:
    """Return an architecture's name for reports and tables.

    Args:
        architecture: as a recipe or a summary names it.

    Returns:
        `resnet8` for `zoo:resnet8`, `net.py:build, slimmed` for `slimmed:/a/folder/net.py:build`.
    """
    done = []
    while architecture.startswith(FORM_PREFIXES):
        prefix, _, architecture = architecture.partition(":")
        done.append(prefix)
    name = architecture.removeprefix("zoo:").removeprefix("torchvision:")
    return ", ".join([PurePath(name).name if ".py:" in name else name, *done])
