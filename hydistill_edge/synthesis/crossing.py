"""New images out of two of one kind: laid over each other, side by side, or in another light.

Images from formulas that a teacher takes for a rare class are rare: one of a hundred. Two of them
crossed are still of their class in a third of the cases or more. The teacher is asked again, so a
crossing that spoils the class does no harm.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.synthesis.procedural import Images

_LEAST_STD = 1e-3


def cross(parents: Images, count: int, choice: np.random.Generator) -> Images:
    """Return new images, each out of two parents.

    Args:
        parents: shape (N, H, W, C) uint8; a single one is shown in another light only.
        count: how many.
        choice: all that is drawn is drawn from here.

    Returns:
        Shape (count, H, W, C) uint8.
    """
    children = np.empty((count, *parents.shape[1:]), np.uint8)
    alone = len(parents) == 1
    for place in range(count):
        first, second = (0, 0) if alone else choice.choice(len(parents), size=2, replace=False)
        one = _moved(parents[first].astype(np.float32), choice)
        other = _moved(parents[second].astype(np.float32), choice)
        kind = 1.0 if alone else choice.random()
        if kind < 0.4:
            child = _laid_over(one, other, choice.uniform(0.2, 0.8))
        elif kind < 0.7:
            child = _side_by_side(one, other, choice)
        else:
            light, mean = 20 * choice.normal(), one.mean()
            child = (one - mean) * np.exp(0.4 * choice.normal()) + mean + light
        children[place] = np.clip(child, 0, 255)
    return children


def _moved(image: NDArray[np.float32], choice: np.random.Generator) -> NDArray[np.float32]:
    """Shift an image around its edges, and mirror it, each in half of the cases."""
    shift, right, down = choice.random(3) < 0.5
    if shift:
        image = np.roll(image, choice.integers(image.shape[:2]), axis=(0, 1))
    if right:
        image = image[:, ::-1]
    return image[::-1] if down else image


def _laid_over(
    one: NDArray[np.float32], other: NDArray[np.float32], share: float
) -> NDArray[np.float32]:
    """Return the weighted sum, with a contrast between theirs, which a sum alone would lower."""
    blended = share * one + (1 - share) * other
    contrast = (one.std() + other.std()) / 2 / max(blended.std(), _LEAST_STD)
    mean = blended.mean()
    return np.asarray((blended - mean) * contrast + mean)


def _side_by_side(
    one: NDArray[np.float32], other: NDArray[np.float32], choice: np.random.Generator
) -> NDArray[np.float32]:
    """Return one image left of a line, the other one right of it, with a soft edge."""
    height, width, _ = one.shape
    side = max(height, width)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, offset = choice.uniform(0, np.pi), 0.16 * side * choice.normal()
    distance = (x - width / 2) * np.cos(angle) + (y - height / 2) * np.sin(angle) + offset
    share = 0.5 + 0.5 * np.tanh(distance / (2 * side * choice.uniform(0.016, 0.14)))
    return np.asarray(share[..., None] * one + (1 - share[..., None]) * other, np.float32)
