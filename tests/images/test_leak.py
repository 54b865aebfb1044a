"""Made images that show collected ones."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hydistill_edge.errors import ShapeError
from hydistill_edge.images.leak import check_leak
from hydistill_edge.images.thumbnails import thumbnails


def random(count: int, seed: int = 0, shape: tuple[int, ...] = (16, 16, 3)) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def test_thumbnails_are_block_means() -> None:
    images = random(3, shape=(16, 24, 2))
    wanted = images.reshape(3, 8, 2, 8, 3, 2).mean(axis=(2, 4)).reshape(3, -1)
    np.testing.assert_allclose(thumbnails(images), wanted, rtol=1e-6)


def test_thumbnails_of_small_images_are_the_images() -> None:
    images = random(2, shape=(5, 4, 1))
    np.testing.assert_array_equal(thumbnails(images), images.reshape(2, -1))


def test_copies_are_found_exact_and_near() -> None:
    collected, made = random(300), random(4, seed=1)
    made[1] = collected[7]
    made[3] = np.clip(collected[290].astype(int) + 5, 0, 255)
    found = check_leak(made, collected)
    assert found.near_copies.tolist() == [1, 3]
    assert found.nearest[[1, 3]].tolist() == [7, 290]
    assert found.to_dict()["exact_copies"] == 1
    assert found.to_dict()["nearest"][1]["distance"] == pytest.approx(5, abs=0.5)


def test_distances_equal_brute_force_where_thumbnails_are_whole_images() -> None:
    collected, made = random(9, shape=(8, 8, 1)), random(5, seed=1, shape=(8, 8, 1))
    a, b = made.astype(float), collected.astype(float)
    pairs = np.sqrt(np.square(a[:, None] - b[None]).mean(axis=(2, 3, 4)))
    own = np.sqrt(np.square(b[:, None] - b[None]).mean(axis=(2, 3, 4))) + np.eye(9) * 1e9
    found = check_leak(made, collected)
    np.testing.assert_allclose(found.distances, pairs.min(axis=1), rtol=1e-5)
    assert found.nearest.tolist() == pairs.argmin(axis=1).tolist()
    assert found.usual == pytest.approx(np.median(own.min(axis=1)), rel=1e-5)


def test_single_collected_image_has_no_usual_distance_but_exact_copies() -> None:
    collected = random(1)
    found = check_leak(np.concatenate([collected, random(1, seed=1)]), collected)
    assert found.usual is None
    assert found.near_copies.tolist() == [0]


def test_images_of_different_sizes_are_refused() -> None:
    with pytest.raises(ShapeError, match="at least one of each"):
        check_leak(random(2), random(2, shape=(8, 8, 3)))
