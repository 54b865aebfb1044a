"""Run any number of images through a runner that takes a fixed number at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hydistill_edge.errors import ShapeError
from hydistill_edge.targets.base import Images, Logits

Run = Callable[[Images], Logits]
"""`Runner.run`, or anything like it: uint8 pixels (N, H, W, C) to logits (N, classes)."""

# Images at once where the model takes any number: enough to be quick, small in memory.
DYNAMIC_BATCH = 64


def run_in_batches(run: Run, images: Images, batch: int | None) -> Logits:
    """Return the logits of all images, as a fresh array of shape (N, classes).

    Args:
        run: takes exactly `batch` images at once, or any number where batch is None.
        images: shape (N, H, W, C) uint8, N ≥ 1; the last batch is filled up by its last image.
        batch: the model's fixed batch, or None.

    Raises:
        ShapeError: no images, or an output that is not one row per image.
    """
    if images.ndim != 4 or len(images) == 0:
        raise ShapeError(f"images have shape {images.shape}; expected (N, H, W, C) with N >= 1")
    size = batch or DYNAMIC_BATCH
    parts = []
    for start in range(0, len(images), size):
        chunk = images[start : start + size]
        parts.append(run_padded(run, chunk, batch)[: len(chunk)].copy())
    return np.concatenate(parts)


def run_padded(run: Run, chunk: Images, batch: int | None) -> Logits:
    """Run one batch, filled up by repeating its last image; rows past the chunk are padding."""
    missing = (batch or len(chunk)) - len(chunk)
    if missing:
        chunk = np.concatenate([chunk, np.repeat(chunk[-1:], missing, axis=0)])
    logits = np.asarray(run(np.ascontiguousarray(chunk)))
    if logits.ndim != 2 or len(logits) != len(chunk):
        raise ShapeError(
            f"{len(chunk)} images gave logits of shape {logits.shape}; "
            f"expected ({len(chunk)}, classes): check the model's fixed batch"
        )
    return logits
