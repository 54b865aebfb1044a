"""How an architecture is named to people: short, and without the folders of whoever built it."""

from __future__ import annotations

from pathlib import PurePath

PROJECTED_FORM, SLIMMED_FORM, FACTORED_FORM = "projected:", "slimmed:", "factored:"
"""In front of an architecture's name: what our own code does with the network."""


def network_name(architecture: str) -> str:
    """Return an architecture's name for reports and tables.

    Args:
        architecture: as a recipe or a summary names it.

    Returns:
        `resnet8` for `zoo:resnet8`, `net.py:build, slimmed` for `slimmed:/a/folder/net.py:build`.
    """
    forms, name = split_forms(architecture)
    name = name.removeprefix("zoo:").removeprefix("torchvision:")
    done = [form.removesuffix(":") for form in forms]
    return ", ".join([PurePath(name).name if ".py:" in name else name, *done])


def split_forms(architecture: str) -> tuple[list[str], str]:
    """Return the forms in front of an architecture's name, the outermost first, and the rest."""
    forms = []
    while architecture.startswith((PROJECTED_FORM, SLIMMED_FORM, FACTORED_FORM)):
        form, colon, architecture = architecture.partition(":")
        forms.append(form + colon)
    return forms, architecture
