"""t-SNE in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from hydistill_edge.errors import ShapeError
from hydistill_edge.methods.tsne import _gradient, _squared, similarities, tsne


def clusters(count: int = 3, each: int = 12) -> tuple[np.ndarray, np.ndarray]:
    choice = np.random.default_rng(0)
    centres = 10 * choice.normal(size=(count, 8))
    labels = np.repeat(np.arange(count), each)
    return centres[labels] + choice.normal(size=(count * each, 8)), labels


def test_points_of_a_cluster_stay_together_on_the_map() -> None:
    features, labels = clusters()
    places = tsne(features, perplexity=8)
    distances = _squared(places) + np.diag(np.full(len(places), np.inf))
    assert places.shape == (36, 2)
    assert (labels[distances.argmin(axis=1)] == labels).all()
    same = labels[:, None] == labels
    assert distances[~same].min() > 4 * np.median(distances[same & np.isfinite(distances)])


def test_map_is_the_same_for_the_same_points() -> None:
    features, _ = clusters()
    assert (tsne(features, steps=30) == tsne(features.copy(), steps=30)).all()


def test_similarities_have_the_perplexity_asked_for() -> None:
    features, _ = clusters()
    joint = similarities(features, 6.0)
    assert joint.sum() == pytest.approx(1.0)
    assert (joint == joint.T).all()
    assert np.diag(joint).max() == 0.0
    one = np.random.default_rng(1).normal(size=(40, 3))
    shares = np.array(similarities(one, 5.0))
    assert shares.min() >= 0.0


def test_gradient_is_that_of_the_divergence() -> None:
    features, _ = clusters(count=2, each=4)
    wanted = similarities(features, 2.0)
    places = np.random.default_rng(2).normal(size=(8, 2))

    def divergence(points: np.ndarray) -> float:
        kernel = 1 / (1 + _squared(points))
        np.fill_diagonal(kernel, 0)
        own = kernel / kernel.sum()
        kept = wanted > 0
        return float((wanted[kept] * np.log(wanted[kept] / own[kept])).sum())

    moved = places.copy()
    moved[3, 1] += 1e-5
    slope = (divergence(moved) - divergence(places)) / 1e-5
    assert _gradient(wanted, places)[3, 1] == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("features", [np.zeros((3, 4)), np.zeros(9)])
def test_map_is_refused_when_points_are_too_few(features: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="N >= 4"):
        tsne(features)


def test_equal_points_give_a_finite_map() -> None:
    assert np.isfinite(tsne(np.ones((6, 3)), steps=20)).all()
