"""Has a generator collapsed? Its images are compared with the collected ones, class by class."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from hydistill_edge.objectives.coverage import class_statistics

POOR = 0.3
"""Images that vary less within a class than this share of the collected ones are called poor."""

ALIKE = 0.02
"""Below this, images differ by no more than noise."""


@dataclass(frozen=True)
class Health:
    """What shows whether a generator collapsed.

    Attributes:
        pixel_diversity: deviation of pixels within an asked class, over that of the collected
            images within a class; the mean over classes with two images of each.
        feature_diversity: the same of the teacher's penultimate features.
        hit: share of the images that the teacher names as asked.
        classes_made: classes that the teacher sees at all.
        classes: number of classes.
    """

    pixel_diversity: float
    feature_diversity: float
    hit: float
    classes_made: int
    classes: int

    @property
    def all_alike(self) -> bool:
        """Whether the images of a class are one image, for the eye or for the teacher."""
        return min(self.pixel_diversity, self.feature_diversity) < ALIKE

    @property
    def problem(self) -> str:
        """What is wrong, in a sentence; empty when nothing is."""
        found = []
        if min(self.pixel_diversity, self.feature_diversity) < POOR:
            found.append(
                "the generator's images of a class are nearly alike (they vary "
                f"{self.pixel_diversity:.0%} as much as the collected ones in pixels, "
                f"{self.feature_diversity:.0%} in the teacher's features)"
            )
        if self.classes_made < self.classes:
            found.append(
                f"the teacher sees {self.classes_made} of {self.classes} classes in the "
                "generator's images"
            )
        return "; ".join(found)

    def metrics(self) -> dict[str, float]:
        """Return the measurements for a history entry."""
        values = asdict(self)
        return {name: float(value) for name, value in values.items() if name != "classes"}


@torch.no_grad()
def measure_health(
    real: Tensor,
    real_features: Tensor,
    real_classes: Tensor,
    made: Tensor,
    made_features: Tensor,
    asked: Tensor,
    *,
    answers: Tensor,
) -> Health:
    """Return the health of a generator.

    Args:
        real: collected images, shape (N, C, H, W) uint8.
        real_features: the teacher's, shape (N, D).
        real_classes: shape (N,) int64.
        made: generated images, shape (M, C, H, W) uint8, every class at least twice.
        made_features: shape (M, D).
        asked: shape (M,) int64.
        answers: the teacher's top classes of them, shape (M,) int64.
    """
    classes = int(asked.max()) + 1
    return Health(
        pixel_diversity=_ratio(
            (real.flatten(1).float(), real_classes), (made.flatten(1).float(), asked), classes
        ),
        feature_diversity=_ratio((real_features, real_classes), (made_features, asked), classes),
        hit=float((answers == asked).float().mean()),
        classes_made=len(torch.unique(answers)),
        classes=classes,
    )


def _ratio(real: tuple[Tensor, Tensor], made: tuple[Tensor, Tensor], classes: int) -> float:
    of_real, of_made = (class_statistics(*part, count=classes) for part in (real, made))
    both = (of_real.count > 1) & (of_made.count > 1)
    if not bool(both.any()):  # one collected image per class: nothing to compare with
        return 1.0
    spread = of_real.deviation[both].square().mean().sqrt()
    return float(of_made.deviation[both].square().mean().sqrt() / spread.clamp_min(1e-12))
