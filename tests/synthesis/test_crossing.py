"""Crossings: of which two images they are made, and what they keep of them."""

from __future__ import annotations

import numpy as np

from hydistill_edge.synthesis.crossing import cross
from hydistill_edge.synthesis.procedural import draw


def parents(count: int = 12, channels: int = 3) -> np.ndarray:
    return draw(0, count, size=(16, 24), channels=channels)


def test_children_have_their_parents_shape_and_go_by_the_generator_alone() -> None:
    for channels in (1, 3):
        given = parents(channels=channels)
        children = cross(given, 20, np.random.default_rng(0))
        assert children.shape == (20, 16, 24, channels)
        assert children.dtype == np.uint8
        assert (children == cross(given, 20, np.random.default_rng(0))).all()
        assert (children != cross(given, 20, np.random.default_rng(1))).any()


def test_no_two_are_alike_and_none_is_a_parent() -> None:
    given = parents()
    children = {image.tobytes() for image in cross(given, 100, np.random.default_rng(0))}
    assert len(children) == 100
    assert not children & {image.tobytes() for image in given}


def test_two_flat_parents_give_flat_sides_and_sums() -> None:
    given = np.stack([np.full((8, 8, 1), 40, np.uint8), np.full((8, 8, 1), 200, np.uint8)])
    children = cross(given, 300, np.random.default_rng(0)).astype(float)
    spread = children.std(axis=(1, 2, 3))
    # Beside sums and other lights, which are flat, there are edges between two greys.
    assert 0.2 < (spread > 20).mean() < 0.4
    edges = children[spread > 20]
    assert edges.min() >= 39
    assert edges.max() <= 200


def test_contrast_does_not_fade_over_many_crossings() -> None:
    given = parents(64)
    children = cross(given, 400, np.random.default_rng(0))
    before = np.median(given.std(axis=(1, 2, 3)))
    after = np.median(children.std(axis=(1, 2, 3)))
    assert after / before > 0.8


def test_one_parent_is_enough() -> None:
    assert cross(parents(1), 5, np.random.default_rng(0)).std() > 1
