"""What INFER's compensators are held against: one tensor per class, where INFER has one for all.

Networks, natural images, loss and steps are those of the set (`synthesis/compensator.py`); all that
differs is whom a tensor is for. The images are made for the report alone: nothing is trained on
them, and the same bytes would buy as many times fewer images as there are classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hydistill_edge.images.compensated_set import CompensatedSet
from hydistill_edge.models.ensemble import Ensemble
from hydistill_edge.synthesis.compensator import optimize_compensator
from hydistill_edge.synthesis.infer_settings import CompensatorSettings


@dataclass(frozen=True)
class ClassSpecific:
    """Images that were made class by class.

    Attributes:
        images: shape (N, H, W, C) uint8.
        classes: what each stands for, shape (N,) int64.
    """

    images: NDArray[np.uint8]
    classes: NDArray[np.int64]


def class_specific(
    distilled: CompensatedSet,
    ensemble: Ensemble,
    *,
    slots: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> ClassSpecific:
    """Make the images of some slots class by class.

    Args:
        distilled: the set, with its manifest.
        ensemble: the networks that it was made with, which are moved to the device.
        slots: how many of its slots, from the first one on.
        seed: of the shifts.
        device: where to compute.

    Returns:
        As many images as these slots have natural ones, times the number of networks.

    Raises:
        MethodError: values are no longer finite.
    """
    settings = _settings(distilled)
    ensemble.to(device).to(memory_format=torch.channels_last)
    images, classes = [], []
    for slot in range(min(slots, int(distilled.base_slots.max()) + 1)):
        rows = np.flatnonzero(distilled.base_slots == slot)
        of_rows = distilled.classes[rows]
        pixels = torch.from_numpy(distilled.images(rows)).permute(0, 3, 1, 2).to(device).float()
        for place, network in enumerate(ensemble.networks):
            added, _ = optimize_compensator(
                network,
                pixels / 255.0,
                torch.from_numpy(of_rows).to(device),
                settings,
                seed=[seed, slot, place],
                per_class=True,
            )
            levels = (pixels + 255.0 * settings.scale * added).round().clamp(0, 255)
            images.append(levels.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy())
            classes.append(of_rows)
    return ClassSpecific(np.concatenate(images), np.concatenate(classes))


def _settings(distilled: CompensatedSet) -> CompensatorSettings:
    """Return how the set was made; JSON has made lists of tuples."""
    told: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in distilled.manifest["settings"].items()
    }
    return CompensatorSettings(**told)
