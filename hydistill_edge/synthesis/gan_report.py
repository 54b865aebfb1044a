"""What can be said about the images of a GAN: classes, coverage of feature space, leaks."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydistill_edge.images.leak import check_leak
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.coverage import coverage_table, density_and_coverage
from hydistill_edge.synthesis.gan import TrainedGan
from hydistill_edge.synthesis.gan_images import Sampled

COMPARED = 5000
"""Images of each kind at most whose distances in feature space are compared."""

_NEIGHBOURS = 5
_BATCH = 250


def report_gan(
    teacher: Teacher, collected: NDArray[np.uint8], gan: TrainedGan, sampled: Sampled
) -> dict[str, Any]:
    """Return plain values about a trained GAN and the images that were taken from it.

    Args:
        teacher: the GAN's.
        collected: shape (N, H, W, C) uint8, what it was trained on.
        gan: trained.
        sampled: its images.
    """
    of_real, classes_real = teacher_features(teacher, collected)
    of_made, _ = teacher_features(teacher, sampled.images)
    targets = torch.from_numpy(sampled.targets).to(of_made.device)
    count = len(teacher.classes)
    table = coverage_table(of_real, classes_real, of_made, targets, classes=count)
    report: dict[str, Any] = {
        "count": len(sampled.images),
        "duplicates": sampled.duplicates,
        "hit": sampled.hit,
        "class_counts": dict(zip(teacher.classes, sampled.class_counts, strict=True)),
        "class_entropy": class_entropy(sampled.class_counts),
        "iterations": gan.iterations,
        "seconds": gan.seconds,
        "note": gan.note,
        "health": asdict(gan.health),
        "coverage": {
            "per_class": [
                {"class": name, "share": None if share != share else share}
                for name, share in zip(teacher.classes, table.per_class.tolist(), strict=True)
            ],
            "flagged": [teacher.classes[place] for place in table.flagged],
            "missing": [teacher.classes[place] for place in table.missing],
        },
        "leak": check_leak(sampled.images, collected).to_dict(),
        "history": gan.history,
    }
    if len(collected) > _NEIGHBOURS:
        report["coverage"] |= density_and_coverage(
            of_real[:COMPARED], of_made[:COMPARED], neighbours=_NEIGHBOURS
        )
    return report


def class_entropy(counts: list[int]) -> float:
    """Return the entropy of class counts over the largest possible, in [0, 1]."""
    shares = np.array(counts, np.float64) / max(1, sum(counts))
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum() / np.log(len(counts)))


@torch.no_grad()
def teacher_features(teacher: Teacher, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Return penultimate features (N, D) and top classes (N,) of uint8 images."""
    parameter = next(teacher.parameters())
    features, classes = [], []
    for start in range(0, len(images), _BATCH):
        part = torch.from_numpy(np.ascontiguousarray(images[start : start + _BATCH]))
        answer = teacher.features(part.permute(0, 3, 1, 2).to(parameter.device))
        features.append(answer.penultimate.flatten(1).float())
        classes.append(answer.logits.argmax(dim=1))
    return torch.cat(features), torch.cat(classes)
