"""What can be said about a set of natural images and compensators: realism, coverage, privacy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hydistill_edge.images.compensated_set import CompensatedSet
from hydistill_edge.images.leak import check_leak
from hydistill_edge.models.ensemble import Ensemble
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.bn_statistics import BatchStatistics, bn_distance
from hydistill_edge.objectives.coverage import density_and_coverage
from hydistill_edge.synthesis.gan_report import COMPARED, teacher_features

DOMINANT = 3.0
"""Ratio of the networks' logit deviations from which on one of them decides alone."""

_NEIGHBOURS = 5
_BATCH = 256


def describe_set(
    distilled: CompensatedSet, ensemble: Ensemble, teacher: Teacher, real: NDArray[np.uint8]
) -> dict[str, Any]:
    """Return plain values about a set.

    Args:
        distilled: the set.
        ensemble: the networks that it was made with.
        teacher: whose features are compared.
        real: the real images that the natural ones were drawn from, shape (N, H, W, C).

    Returns:
        `realism`: share of the images that the networks name as intended, and their BatchNorm
        distance (mean over layers and networks, KL); `coverage`: density and coverage among the
        features of the real images, None where there are too few; both for the natural and the
        compensated images. `nearest_real`: how near the compensated images come to real ones.
        `logit_std`: deviation of each network's logits, with a note where one dominates.
    """
    natural = np.arange(distilled.natural)
    compensated = np.arange(distilled.natural, len(distilled))
    kinds = {"natural": natural}
    if len(compensated):
        kinds["compensated"] = compensated
    found: dict[str, Any] = {"realism": {}, "coverage": {}, "nearest_real": None}
    of_real = teacher_features(teacher, _some(real))[0]
    for kind, places in kinds.items():
        some = _some(places)
        images = distilled.images(some)
        found["realism"][kind] = _realism(ensemble, images, distilled.classes[some])
        found["coverage"][kind] = None
        if len(of_real) > _NEIGHBOURS:
            made = teacher_features(teacher, images)[0]
            found["coverage"][kind] = density_and_coverage(of_real, made, neighbours=_NEIGHBOURS)
    if len(compensated):
        leak = check_leak(distilled.images(_some(compensated)), real).to_dict()
        found["nearest_real"] = {key: value for key, value in leak.items() if key != "nearest"}
    found |= _scales(ensemble, distilled.images(_some(natural)))
    return found


@torch.no_grad()
def _realism(
    ensemble: Ensemble, images: NDArray[np.uint8], classes: NDArray[np.int64]
) -> dict[str, float]:
    """Return the share named as intended, and the BatchNorm distance."""
    right, distance = 0, 0.0
    for start in range(0, len(images), _BATCH):
        pixels = _pixels(ensemble, images[start : start + _BATCH])
        logits = []
        for network in ensemble.networks:
            with BatchStatistics(network.network) as reader:
                logits.append(network(pixels).float())
                distance += bn_distance(reader.take()).item() * len(pixels)
        named = ensemble.combine(torch.stack(logits)).argmax(dim=1).cpu().numpy()
        right += int((named == classes[start : start + _BATCH]).sum())
    return {
        "named_as_intended": right / len(images),
        "bn_distance": distance / len(images) / len(ensemble),
    }


@torch.no_grad()
def _scales(ensemble: Ensemble, images: NDArray[np.uint8]) -> dict[str, Any]:
    """Return the deviation of each network's logits, and a note where one dominates."""
    parts = [
        ensemble.each(_pixels(ensemble, images[start : start + _BATCH]))
        for start in range(0, len(images), _BATCH)
    ]
    logits = torch.cat(parts, dim=1)
    deviations = (logits - logits.mean(dim=-1, keepdim=True)).square().mean(dim=(1, 2)).sqrt()
    values = [float(value) for value in deviations.cpu()]
    note = ""
    if max(values) > DOMINANT * min(values) and ensemble.average == "logits":
        note = (
            f"the largest logits are {max(values) / max(min(values), 1e-9):.1f} times the smallest "
            "ones, so one network decides nearly alone; average probabilities instead"
        )
    return {"logit_std": values, "logit_note": note}


def _pixels(ensemble: Ensemble, images: NDArray[np.uint8]) -> torch.Tensor:
    device = next(ensemble.parameters()).device
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(device)


def _some(values: NDArray[Any]) -> NDArray[Any]:
    """Return at most `COMPARED` entries, evenly spread."""
    if len(values) <= COMPARED:
        return values
    return values[np.linspace(0, len(values) - 1, COMPARED).astype(np.int64)]
