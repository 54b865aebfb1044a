"""t-SNE: points of many dimensions on a plane, neighbours staying neighbours.

Source: van der Maaten and Hinton 2008, "Visualizing Data using t-SNE", JMLR 9. The exact form, for
a few hundred points; it starts from the first two principal components, so equal points give an
equal map.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import ShapeError

Points = NDArray[np.float64]

EXAGGERATION = 12.0
"""Factor on the similarities over the first quarter of the steps."""

_LEAST = 1e-12
_BISECTIONS = 50


def tsne(features: NDArray[np.floating], *, perplexity: float = 30.0, steps: int = 500) -> Points:
    """Return a map of points, shape (N, 2).

    Args:
        features: shape (N, D), N at least 4.
        perplexity: about how many neighbours count; at most a third of the points.
        steps: of gradient descent.

    Raises:
        ShapeError: fewer than four points, or not (N, D).
    """
    if features.ndim != 2 or len(features) < 4:
        raise ShapeError(f"features of shape {features.shape}; expected (N, D) with N >= 4")
    wide = np.asarray(features, np.float64)
    wanted = similarities(wide, min(perplexity, (len(wide) - 1) / 3))
    places = _principal(wide)
    velocity, gains = np.zeros_like(places), np.ones_like(places)
    rate = max(len(wide) / EXAGGERATION / 4, 50.0)
    for step in range(steps):
        early = step < steps // 4
        gradient = _gradient(wanted * (EXAGGERATION if early else 1.0), places)
        same = np.sign(gradient) == np.sign(velocity)
        gains = np.maximum(np.where(same, gains * 0.8, gains + 0.2), 0.01)
        velocity = (0.5 if early else 0.8) * velocity - rate * gains * gradient
        places = places + velocity
        places -= places.mean(axis=0)
    return places


def similarities(features: Points, perplexity: float) -> Points:
    """Return how near points are to each other, shape (N, N): symmetric, 0 to itself, sum 1.

    Args:
        features: shape (N, D).
        perplexity: of each point's distribution over the others, which its width is fitted to.
    """
    distances = _squared(features)
    np.fill_diagonal(distances, np.inf)
    near = distances - distances.min(axis=1, keepdims=True)  # what a row's sum cancels anyway
    low, high = np.zeros(len(near)), np.full(len(near), np.inf)
    width = 1.0 / np.maximum(np.median(near[np.isfinite(near)]), _LEAST) * np.ones(len(near))
    for _ in range(_BISECTIONS):
        shares = np.exp(-near * width[:, None])
        shares /= shares.sum(axis=1, keepdims=True)
        entropy = -(shares * np.log(np.maximum(shares, _LEAST))).sum(axis=1)
        wide = entropy > np.log(perplexity)
        low, high = np.where(wide, width, low), np.where(wide, high, width)
        width = np.where(np.isinf(high), 2 * width, (low + high) / 2)
    joint: Points = (shares + shares.T) / (2 * len(near))
    return joint


def _gradient(wanted: Points, places: Points) -> Points:
    kernel = 1.0 / (1.0 + _squared(places))
    np.fill_diagonal(kernel, 0.0)
    force = (wanted - np.maximum(kernel / kernel.sum(), _LEAST)) * kernel
    gradient: Points = 4.0 * (force.sum(axis=1)[:, None] * places - force @ places)
    return gradient


def _squared(points: Points) -> Points:
    squares = np.square(points).sum(axis=1)
    distances: Points = squares[:, None] + squares - 2.0 * points @ points.T
    np.maximum(distances, 0.0, out=distances)
    return distances


def _principal(features: Points) -> Points:
    """Return the first two principal components, small, with signs that do not hang on luck."""
    centred = features - features.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    found: Points = np.zeros((len(features), 2))
    known = min(2, left.shape[1])
    found[:, :known] = left[:, :known] * values[:known]
    for column in range(known):
        if found[np.abs(found[:, column]).argmax(), column] < 0:
            found[:, column] *= -1
    found *= 1e-4 / max(float(found[:, 0].std()), _LEAST)
    return found
