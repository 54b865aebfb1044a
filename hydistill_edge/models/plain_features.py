"""A teacher's features read without hooks, as a compiler needs it.

`Teacher.features` reads any network by hooks, which a compiler cannot look through. A network whose
own part `features` makes the final map, and a linear layer of its mean the logits, needs none: all
of the zoo is so built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hydistill_edge.models.anatomy import probe_input
from hydistill_edge.models.pixels import PixelInput
from hydistill_edge.models.teacher import Teacher


class Answer(NamedTuple):
    """What a teacher says about a batch.

    Attributes:
        logits: shape (N, classes).
        penultimate: shape (N, D).
        final_map: shape (N, D, h, w).
    """

    logits: Tensor
    penultimate: Tensor
    final_map: Tensor


class PlainFeatures(nn.Module):
    """Final map, its mean, and a linear layer of that.

    Args:
        pixels: brings pixels to the network.
        trunk: makes the final map.
        classifier: makes the logits.
    """

    def __init__(self, pixels: PixelInput, trunk: nn.Module, classifier: nn.Linear) -> None:
        super().__init__()
        self.pixels = pixels
        self.trunk = trunk
        self.classifier = classifier

    def forward(self, pixels: Tensor) -> Answer:
        """Return what the teacher says about pixels as in `Teacher.forward`; gradients flow."""
        final_map: Tensor = self.trunk(self.pixels(pixels))
        penultimate = final_map.mean(dim=(2, 3))
        return Answer(self.classifier(penultimate), penultimate, final_map)


def asking(teacher: Teacher) -> Callable[[Tensor], Answer]:
    """Return what asks a teacher of any kind, by hooks; gradients flow."""

    def ask(pixels: Tensor) -> Answer:
        found = teacher.features(pixels)
        return Answer(found.logits, found.penultimate.flatten(1), found.final_map)

    return ask


def plain_features(teacher: Teacher) -> PlainFeatures | None:
    """Return a teacher's features without hooks, None where only hooks can read them.

    Args:
        teacher: its weights are shared, not copied.
    """
    network, classifier = teacher.network, teacher.classifier
    trunk = getattr(network, "features", None)
    if not teacher.shares_classifier or classifier is None or not isinstance(trunk, nn.Module):
        return None
    example = probe_input(network, channels=teacher.spec.channels, size=teacher.spec.size)
    with torch.no_grad():
        logits = network(example)
        try:
            made = trunk(example)
        except (RuntimeError, TypeError, ValueError):  # a part with other inputs
            return None
        if not isinstance(made, Tensor) or made.dim() != 4:
            return None
        if made.shape[1] != classifier.in_features:
            return None
        again = classifier(made.mean(dim=(2, 3)))
    close = torch.allclose(again, logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))
    return PlainFeatures(teacher.input, trunk, classifier) if close else None
