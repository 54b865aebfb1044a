"""What every factored layer gives, beside what the teacher's layer gives.

A factored student has the channels of its teacher at every layer, so the two can be compared there
without any map between them. Logits alone let the layers in between drift to whatever explains the
images at hand; where these are from formulas, real ones then find a network that has forgotten
them.

Source: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", arXiv:1412.6550, at every layer
that was factored and without the regressor.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hydistill_edge.errors import MethodError
from hydistill_edge.models.low_rank import as_maps
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher

LEAST_IMAGES, PIXELS = 8, 2**18
"""That the channels' variances are taken from: what all layers give for them is held at once."""

LEAST_VARIANCE = 1e-2
"""Of a channel, over the mean of its layer: one that hardly moves does not lead."""


class LayerHint:
    """The distance of a factored student's layers to its teacher's; it adds up with any loss.

    Args:
        student: factored; `student_layers` are its layers, in the order of `teacher_layers`.
        teacher: what it was made of.
        images: of the training, shape (N, C, H, W); the first of them give every channel's scale.

    Raises:
        MethodError: the student is not factored.
    """

    def __init__(self, student: Student, teacher: Teacher, images: Tensor) -> None:
        if student.start != "factored":
            raise MethodError(
                f"layers are compared one by one where a student is its teacher factored; this one "
                f"({student.architecture or 'without a name'}) is not: leave layer_weight out, or "
                "use feature_weight"
            )
        self.teacher_layers = list(student.options["ranks"])
        self.student_layers = [student.layer_of_teacher(name) for name in self.teacher_layers]
        some = images[: max(LEAST_IMAGES, PIXELS // images[0, 0].numel())]
        with torch.no_grad():
            seen = teacher.features(some, self.teacher_layers).taps
        self._layers = [teacher.network.get_submodule(name) for name in self.teacher_layers]
        self._variances = [
            _variance(as_maps(seen[name], layer))
            for name, layer in zip(self.teacher_layers, self._layers, strict=True)
        ]

    def loss(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        """Return the mean square of the difference over the channel's variance, shape ().

        The mean over layers, each with the same weight.

        Args:
            student: what `student_layers` give, as `features` reads it; gradients flow here.
            teacher: what `teacher_layers` give for the same images; detached.
        """
        parts = []
        for own, name, layer, variance in zip(
            self.student_layers, self.teacher_layers, self._layers, self._variances, strict=True
        ):
            off = student[own].float() - teacher[name].detach().float()
            parts.append((as_maps(off, layer).square() / variance).mean())
        return torch.stack(parts).mean()


def _variance(maps: Tensor) -> Tensor:
    """Return the variance of each channel, shape (channels, 1)."""
    variance = maps.float().var(dim=(0, 2), correction=0)
    variance = variance.clamp_min(LEAST_VARIANCE * variance.mean()).clamp_min(1e-12)
    return variance[:, None]
