"""Several trainings under one budget, held against each other on the same held-out images.

Method hidfd compares its three arms, method kd3 its four stages. Labels are not needed: what is
measured is how often a student decides like the teacher, for all images, class by class, and on the
same images as another lamp and a cheaper sensor would deliver them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydistill_edge.images.transfer_set import Indices
from hydistill_edge.methods.pool import Pool
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher

DOCUMENT = "comparison.json"
"""The rows of a comparison, among the documents."""

CONTRAST, BRIGHTNESS, NOISE = 0.7, -0.1, 0.04
"""Of a shifted image: a flatter, darker and noisier one, in pixel units of [0, 1]."""

SHIFT = (
    f"contrast times {CONTRAST:g}, brightness {BRIGHTNESS:+g}, noise of deviation {NOISE:g}, of a "
    "pixel range of 1"
)

_SHIFT_SEED = 41


@dataclass(frozen=True)
class Row:
    """One training of a comparison.

    Attributes:
        name: of the row.
        what: what was trained on, in a few words.
        student: trained.
        steps: optimizer steps.
    """

    name: str
    what: str
    student: Student
    steps: int


def compare(
    rows: Sequence[Row], teacher: Teacher, pool: Pool, held_out: Indices, *, batch: int
) -> dict[str, Any]:
    """Return the rows' measurements as plain values.

    Args:
        rows: trainings to compare, in the order in which they are shown.
        teacher: whose decisions count.
        pool: the transfer set.
        held_out: places in it that no training has seen, at least one.
        batch: images at a time.
    """
    told = [
        {
            "name": row.name,
            "what": row.what,
            "steps": row.steps,
            **measure(row.student, teacher, pool, held_out, batch=batch),
        }
        for row in rows
    ]
    return {
        "schema_version": 1,
        "measure": "decisions like the teacher's on held-out images, in [0, 1]",
        "shift": SHIFT,
        "images": len(held_out),
        "rows": told,
    }


@torch.no_grad()
def measure(
    student: Student, teacher: Teacher, pool: Pool, held_out: Indices, *, batch: int
) -> dict[str, Any]:
    """Return how often a student decides like its teacher: in all, per class, and when shifted.

    Args:
        student: in eval mode afterwards.
        teacher: asked about shifted images; for the others its stored logits are read.
        pool: the transfer set.
        held_out: places in it, at least one.
        batch: images at a time.

    Returns:
        `agreement`, `shifted_agreement`, `per_class` (class, n, agreement; null without images)
        and `worst_class`, the lowest of them.
    """
    student.eval()
    device = next(teacher.parameters()).device
    student.to(device)
    generator = torch.Generator(device).manual_seed(_SHIFT_SEED)
    classes, agreed, agreed_shifted = [], [], []
    for start in range(0, len(held_out), batch):
        rows = held_out[start : start + batch]
        images = pool.images(rows)
        wanted = pool.logits(rows).argmax(dim=1)
        moved = shifted(images, generator=generator)
        agreed.append(student(images).argmax(dim=1) == wanted)
        agreed_shifted.append(student(moved).argmax(dim=1) == teacher(moved).argmax(dim=1))
        classes.append(wanted)
    same = torch.cat(agreed).cpu().numpy()
    per_class = _per_class(torch.cat(classes).cpu().numpy(), same, teacher.classes)
    seen = [entry for entry in per_class if entry["n"]]
    return {
        "agreement": float(same.mean()),
        "shifted_agreement": float(torch.cat(agreed_shifted).float().mean()),
        "per_class": per_class,
        "worst_class": min(seen, key=lambda entry: float(entry["agreement"])),
    }


def shifted(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Return images as another lamp and a cheaper sensor would deliver them.

    Args:
        images: shape (N, C, H, W) uint8.
        generator: of the noise.

    Returns:
        Shape (N, C, H, W) float32 in [0, 1].
    """
    pixels = images.float() / 255.0
    noise = torch.randn(pixels.shape, generator=generator, device=pixels.device)
    return (CONTRAST * (pixels - 0.5) + 0.5 + BRIGHTNESS + NOISE * noise).clamp(0.0, 1.0)


def _per_class(
    classes: NDArray[np.int64], same: NDArray[np.bool_], names: Sequence[str]
) -> list[dict[str, Any]]:
    return [
        {
            "class": name,
            "n": int((classes == place).sum()),
            "agreement": float(same[classes == place].mean()) if (classes == place).any() else None,
        }
        for place, name in enumerate(names)
    ]
