"""Rung R6: what must hold of any runner, without a reference.

The same image must get the same logits wherever it stands in a batch, whoever its neighbors are,
and however often it is asked. A released runtime broke exactly this: four equal rows, four
answers (https://github.com/NVIDIA/TensorRT/issues/4813).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import ShapeError
from hydistill_edge.targets.base import Images, Logits
from hydistill_edge.targets.batching import Run, run_in_batches, run_padded
from hydistill_edge.targets.comparison import logit_scale, max_abs_over_scale
from hydistill_edge.targets.gates import at_most, exactly
from hydistill_edge.targets.rungs import R2_LIMITS, Rung, Source

# Rows of one batch where the model takes any number of images.
_ROWS = 8
REPEATS = 100


def r6_metamorphic(
    run: Run,
    images: Images,
    ids: Sequence[str],
    *,
    batch: int | None,
    source: Source = "synthetic",
    tolerance: float | None = None,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Rung:
    """Ask a runner the same thing in several ways, and hold the answers against each other.

    A model of fixed batch 1 has no rows or neighbors to compare; those gates are then left out
    and the note says so.

    Args:
        run: `Runner.run`, which takes `batch` images at once (any number where None).
        images: shape (N, H, W, C) uint8, N ≥ 2, different from each other.
        ids: one per image.
        batch: the model's fixed batch, or None.
        source: where the images come from.
        tolerance: largest difference in units of the logit scale; that of R2 where None.
        repeats: how often the same batch is asked.
        seed: of the row permutation.

    Raises:
        ShapeError: fewer than two images, ids that do not fit, or logits without a row per image.
    """
    if len(images) < 2 or len(ids) != len(images):
        raise ShapeError(
            f"{len(images)} images and {len(ids)} ids; expected at least 2 images, one id each"
        )
    asked = images.copy()
    base = run_in_batches(run, asked, batch)

    def run_copy(images: Images) -> Logits:
        return run(images.copy())  # a runner that writes into its input must not spoil the rest

    nonfinite = _count_nonfinite(base)
    changed = int((asked != images).sum())
    gates = [
        exactly("samples with NaN or infinity", nonfinite, 0, unit="samples"),
        exactly("input pixels changed by the run", changed, 0, unit="pixels"),
        exactly("extreme images with NaN or infinity", *_extremes(run_copy, images, batch)),
        exactly(
            "values of an earlier result changed by a later run",
            _overwritten(run_copy, images, batch),
            0,
            unit="values",
        ),
    ]
    scale = logit_scale(base) if not nonfinite else math.nan
    probe = _Probe(run_copy, images, ids, base, batch, scale)
    checks = {
        "order of the images": probe.permutation(np.random.default_rng(seed)),
        f"the same images {repeats} times": probe.repetition(repeats),
    }
    note = "the batch is fixed at 1: rows and neighbors cannot differ"
    if batch != 1:
        note = ""
        checks["equal images in one batch"] = probe.identical_rows()
        checks["other neighbors in the batch"] = probe.neighbors()
    if batch is None:
        checks["batch 1 against a full batch"] = probe.single()
    limit = R2_LIMITS.max_abs_over_scale if tolerance is None else tolerance
    assert limit is not None
    gates += [
        at_most(f"difference by {name}", value, limit, unit="of scale", worst=worst)
        for name, (value, worst) in checks.items()
    ]
    metrics: dict[str, float | int | None] = {"scale": None if nonfinite else scale}
    metrics |= {gate.name: gate.value for gate in gates[4:]}
    return Rung(
        "R6",
        "Self-consistency of the runner",
        source,
        n=len(images),
        gates=tuple(gates),
        metrics=metrics,
        note=note,
    )


def extreme_images(shape: tuple[int, int, int]) -> Images:
    """Return the images that saturate a network: shape (7 or 3 + 2 C, H, W, C) uint8.

    All black, all white, a checkerboard, then per channel that channel alone at full and alone
    at zero.
    """
    height, width, channels = shape
    black = np.zeros(shape, np.uint8)
    white = np.full(shape, 255, np.uint8)
    rows, columns = np.indices((height, width))
    board = np.where((rows + columns)[..., None] % 2 == 0, white, black)
    stack = [black, white, board]
    for channel in range(channels):
        alone, without = black.copy(), white.copy()
        alone[..., channel], without[..., channel] = 255, 0
        stack += [alone, without]
    return np.stack(stack)


class _Probe:
    """The ways of asking; each returns the largest difference over scale and the id it struck."""

    def __init__(
        self,
        run: Run,
        images: Images,
        ids: Sequence[str],
        base: Logits,
        batch: int | None,
        scale: float,
    ) -> None:
        self.run, self.images, self.ids, self.base = run, images, ids, base
        self.batch, self.scale = batch, scale

    def permutation(self, generator: np.random.Generator) -> tuple[float, str]:
        order = generator.permutation(len(self.images))
        if np.array_equal(order, np.arange(len(order))):
            order = np.roll(order, 1)  # the permutation that changes nothing tests nothing
        logits = run_in_batches(self.run, self.images[order], self.batch)
        return self._largest(logits, self.base[order], order)

    def repetition(self, repeats: int) -> tuple[float, str]:
        chunk = self.images[: self.batch or _ROWS]
        # One batch is compared with itself: rows of the base may stand in batches of other sizes.
        first = run_padded(self.run, chunk, self.batch)[: len(chunk)].copy()
        worst = (0.0, self.ids[0])
        for _ in range(repeats - 1):
            logits = run_padded(self.run, chunk, self.batch)[: len(chunk)]
            worst = _larger(worst, self._largest(logits, first, np.arange(len(chunk))))
        return worst

    def identical_rows(self) -> tuple[float, str]:
        rows = np.repeat(self.images[:1], self.batch or _ROWS, axis=0)
        logits = run_padded(self.run, rows, self.batch)
        return self._largest(
            logits, np.repeat(logits[:1], len(rows), axis=0), np.zeros(len(rows), int)
        )

    def neighbors(self) -> tuple[float, str]:
        rows = self.batch or _ROWS
        worst = (0.0, self.ids[0])
        for slot in range(min(rows, len(self.images))):
            chunk = np.zeros((rows, *self.images.shape[1:]), np.uint8)
            chunk[slot] = self.images[slot]
            logits = run_padded(self.run, chunk, self.batch)[slot : slot + 1]
            worst = _larger(
                worst, self._largest(logits, self.base[slot : slot + 1], np.array([slot]))
            )
        return worst

    def single(self) -> tuple[float, str]:
        logits = np.concatenate([self.run(image[None]).copy() for image in self.images])
        return self._largest(logits, self.base, np.arange(len(self.images)))

    def _largest(
        self, logits: Logits, expected: Logits, index: NDArray[np.integer[Any]]
    ) -> tuple[float, str]:
        difference = np.abs(logits.astype(np.float64) - expected).max(axis=1)
        difference = np.where(np.isfinite(difference), difference, np.inf)
        row = int(np.argmax(difference))
        return (
            max_abs_over_scale(float(difference[row]), self.scale),
            self.ids[int(index[row])],
        )


def _larger(a: tuple[float, str], b: tuple[float, str]) -> tuple[float, str]:
    return b if not b[0] <= a[0] else a  # NaN counts as larger


def _count_nonfinite(logits: Logits) -> int:
    return int((~np.isfinite(logits).all(axis=1)).sum())


def _extremes(run: Run, images: Images, batch: int | None) -> tuple[int, int]:
    _, height, width, channels = images.shape
    return _count_nonfinite(
        run_in_batches(run, extreme_images((height, width, channels)), batch)
    ), 0


def _overwritten(run: Run, images: Images, batch: int | None) -> int:
    """How many values of a result change when the runner is asked something else."""
    first = run_padded(run, images[:1], batch)
    kept = first.copy()
    run_padded(run, 255 - images[:1], batch)
    return int((~((first == kept) | (np.isnan(first) & np.isnan(kept)))).sum())
