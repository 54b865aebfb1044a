"""A hint: what the teacher's last layer sees, beside what it makes of it.

Source: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", arXiv:1412.6550, whose regressor is
taken at the penultimate vector here, during the whole training.

Logits of six classes are six numbers an image; the vector that they come from has hundreds. Of
images that are like nothing the teacher knows, logits alone say too little for a student to answer
alike on real ones. A linear map brings the student's vector to the teacher's width; only training
has it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.seeding import seeded

_LEAST_SCALE = 1e-6


class FeatureHint(nn.Module):
    """The distance between two penultimate vectors, with the linear map that it needs.

    It adds up with any other objective: `loss` takes what `features` of student and teacher give.

    Args:
        student: whose vector is brought to the teacher's.
        teacher: whose vector is learned.
        images: some of the training's, shape (N, C, H, W) in [0, 1]; they give mean and scale of
            the teacher's vector.
        seed: of the map's weights.
    """

    scale: Tensor

    def __init__(
        self, student: Student, teacher: Teacher, images: Tensor, *, seed: int = 0
    ) -> None:
        super().__init__()
        with torch.no_grad():
            seen = _vector(teacher.features(images).penultimate)
            # Batch norms must not move: eval mode, which the trained student leaves again.
            width = _vector(student.eval().features(images[:1]).penultimate).shape[1]
        with seeded(seed):
            self.map = nn.Linear(width, seen.shape[1]).to(images.device)
        with torch.no_grad():
            self.map.bias.copy_(seen.mean(dim=0))
        scale = seen.std(dim=0, correction=0).mean().clamp_min(_LEAST_SCALE)
        self.register_buffer("scale", scale)

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean square of the difference, in units of the teacher's scale, shape ().

        Args:
            student: penultimate vectors (N, D); gradients flow here and into the map.
            teacher: penultimate vectors (N, E) of the same images; detached.
        """
        brought: Tensor = self.map(_vector(student))
        offset = (brought.float() - _vector(teacher).detach().float()) / self.scale
        return offset.square().mean()


class HintedStudent(nn.Module):
    """Student and hint as one module, so that one loop trains, averages and saves both."""

    def __init__(self, student: Student, hint: FeatureHint) -> None:
        super().__init__()
        self.student = student
        self.hint = hint


def _vector(features: Tensor) -> Tensor:
    return features.flatten(1)
