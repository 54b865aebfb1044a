"""Logits of the PyTorch networks for raw pixels, batch by batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hydistill_edge.targets.base import Images, Logits

if TYPE_CHECKING:
    from torch import nn

    from hydistill_edge.models.student import Student
    from hydistill_edge.models.teacher import Teacher
    from hydistill_edge.synthesis.procedural_set import Answer

BATCH = 256


def network_logits(network: nn.Module, images: Images, *, batch: int = BATCH) -> Logits:
    """Return the logits of a `Teacher` or `Student`, in float32 and without gradients.

    Args:
        network: takes float pixels in [0, 1], shape (N, C, H, W).
        images: shape (N, H, W, C) uint8, any N.
        batch: images at once.
    """
    import torch

    network.eval()
    device = next(network.parameters()).device
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            pixels = torch.from_numpy(images[start : start + batch]).to(device)
            logits = network(pixels.permute(0, 3, 1, 2).float() / 255)
            parts.append(logits.float().cpu().numpy())
    if not parts:
        return np.empty((0, len(network.classes)), np.float32)  # type: ignore[arg-type]
    return np.concatenate(parts)


def network_features(network: Teacher, images: Images, *, batch: int = BATCH) -> Logits:
    """Return a teacher's penultimate features, shape (N, D) float32, without gradients.

    Args:
        network: the teacher.
        images: shape (N, H, W, C) uint8, at least one.
        batch: images at once.
    """
    import torch

    device = next(network.parameters()).device
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            pixels = torch.from_numpy(images[start : start + batch]).to(device)
            found = network.features(pixels.permute(0, 3, 1, 2)).penultimate
            parts.append(found.flatten(1).float().cpu().numpy())
    return np.concatenate(parts)


def network_answer(network: Teacher | Student, images: Images, *, batch: int = BATCH) -> Answer:
    """Return a network's logits, and how little each image is like what it was trained on.

    Args:
        network: the teacher, or the student; without BatchNorm no image is unlike.
        images: shape (N, H, W, C) uint8, at least one.
        batch: images at once.
    """
    import torch

    from hydistill_edge.objectives.misfit import reading_misfit
    from hydistill_edge.synthesis.procedural_set import Answer

    network.to(memory_format=torch.channels_last)  # pixels come in this order: up to twice as fast
    logits, misfits = [], []
    with reading_misfit(network) as reader:
        for start in range(0, len(images), batch):
            logits.append(network_logits(network, images[start : start + batch], batch=batch))
            misfits.append(reader.take().cpu().numpy() if reader else np.zeros(len(logits[-1])))
    return Answer(np.concatenate(logits), np.concatenate(misfits).astype(np.float32))
