"""How far a student is from the small network beside it: `arch_overfitting.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hydistill_edge.images.transfer_set import Indices
from hydistill_edge.methods.pool import Pool
from hydistill_edge.models.student import Student
from hydistill_edge.training.loop import Trained


@dataclass(frozen=True)
class Trial:
    """A network and how its training went."""

    student: Student
    trained: Trained


def gap_report(
    student: Trial,
    small: Trial | None,
    *,
    pool: Pool,
    held_out: Indices,
    batch: int,
    parts: Mapping[str, Any],
    dropped: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the document of one training.

    Args:
        student: what was trained.
        small: the small network; None where there is none.
        pool: images with the labels' scores.
        held_out: places in it that neither has seen.
        batch: images at a time.
        parts: of the method, and how they were set.
        dropped: what was left out while training; None for nothing.

    Returns:
        Plain values; agreements in [0, 1], gaps in percent points.
    """
    found = {
        "schema_version": 1,
        "parts": dict(parts),
        "drop_path": dropped,
        "student": _described(student),
        "small": None if small is None else _described(small),
        "held_out": len(held_out),
        "gap_points": None,
        "gap_error_points": None,
    }
    if small is None:
        return found
    right = [_agrees(trial.student, pool, held_out, batch) for trial in (student, small)]
    difference = right[0] - right[1]
    error = difference.std().item() / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
    gap = {"gap_points": 100 * difference.mean().item(), "gap_error_points": 100 * error}
    return {**found, **gap}


@torch.no_grad()
def _agrees(network: Student, pool: Pool, rows: Indices, batch: int) -> Tensor:
    """Return 1 for each image on which the network names the first class of its label, else 0."""
    same = [
        network(pool.images(part)).argmax(dim=1) == pool.logits(part).argmax(dim=1)
        for part in np.array_split(rows, -(-len(rows) // batch))
    ]
    return torch.cat(same).double()


def _described(trial: Trial) -> dict[str, Any]:
    size = trial.student.count()
    return {
        "arch": trial.student.architecture,
        "width": trial.student.width,
        "params": size.params,
        "macs": size.macs,
        "holdout_agreement": trial.trained.best.metrics["holdout_agreement"],
        "steps": trial.trained.steps,
        "best_step": trial.trained.best_step,
    }
