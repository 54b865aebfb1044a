"""Evaluation images that were seen: planted ones are found, others are not."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hydistill_edge.errors import ShapeError
from hydistill_edge.images import overlap as module
from hydistill_edge.images.overlap import LIMIT_SHARE, Overlap, find_overlap

Images = NDArray[np.uint8]


def scenes(count: int, seed: int, channels: int = 3) -> Images:
    """Return smooth random images (count, 32, 32, channels) with a little fine detail."""
    draw = np.random.default_rng(seed)
    coarse = draw.uniform(0, 255, (count, 5, 5, channels))
    at = np.linspace(0, 3.999, 32)
    low, part = at.astype(int), (at % 1)[:, None]
    rows = coarse[:, low] * (1 - part[..., None]) + coarse[:, low + 1] * part[..., None]
    fine = rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part
    return (fine + draw.normal(0, 3, fine.shape)).clip(0, 255).astype(np.uint8)


def saved_again(image: Images, quality: int = 60) -> Images:
    """Return an image (H, W, C) after it was a JPEG file."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def search(evaluated: Images, used: Images, *, piece: int = 64) -> Overlap:
    def pieces() -> Iterator[tuple[NDArray[np.int64], Images]]:
        for start in range(0, len(used), piece):
            part = used[start : start + piece]
            yield np.arange(start, start + len(part)), part

    return find_overlap(evaluated, pieces())


def test_planted_images_are_found_whatever_was_done_to_the_file() -> None:
    evaluated, used = scenes(120, seed=0), scenes(300, seed=1)
    noise = np.random.default_rng(2).normal(0, 4, used[0].shape)
    used[7] = evaluated[3]
    used[150] = saved_again(evaluated[40])
    used[299] = evaluated[41][:, ::-1]
    used[11] = saved_again(evaluated[42][:, ::-1])
    used[200] = (evaluated[119] + noise).clip(0, 255).astype(np.uint8)
    found = search(evaluated, used)
    assert found.places.tolist() == [3, 40, 41, 42, 119]
    assert found.used.tolist() == [7, 150, 299, 11, 200]
    assert found.mirrored.tolist() == [False, False, True, True, False]
    assert (found.distances == 0).tolist() == [True, False, True, False, False]
    assert found.compared == 300
    assert sorted({*found.places, *found.unseen}) == list(range(120))


def test_nothing_is_found_when_nothing_was_planted() -> None:
    found = search(scenes(120, seed=0), scenes(300, seed=1))
    assert found.places.tolist() == []
    assert found.alike == 0
    assert found.unseen.tolist() == list(range(120))


def test_no_pair_below_the_limit_is_missed() -> None:
    # Far more alike than images are, so that many pairs lie on both sides of the limit.
    base = scenes(1, seed=0, channels=1)[0].astype(float)
    changes = scenes(90, seed=1, channels=1) / 128.0 - 1
    levels = np.random.default_rng(2).uniform(2, 30, (90, 1, 1, 1))
    images = (base + levels * changes).clip(0, 255).astype(np.uint8)
    evaluated, used = images[:30], images[30:]
    found = search(evaluated, used, piece=17)
    both = np.stack([evaluated, evaluated[:, :, ::-1]]).astype(float)
    pairs = np.sqrt(np.square(both[:, :, None] - used[None, None]).mean(axis=(3, 4, 5)))
    contrast = evaluated.astype(float).std(axis=(1, 2, 3))
    assert found.usual is not None
    limits = LIMIT_SHARE * np.minimum(found.usual, contrast)
    wanted = np.flatnonzero(pairs.min(axis=(0, 2)) <= limits)
    assert 0 < len(wanted) < 30
    assert found.places.tolist() == wanted.tolist()
    np.testing.assert_allclose(found.distances, pairs.min(axis=(0, 2))[wanted], rtol=1e-5)
    assert found.used.tolist() == pairs.min(axis=0).argmin(axis=1)[wanted].tolist()


def test_pictures_of_little_contrast_are_no_duplicates_of_each_other() -> None:
    draw = np.random.default_rng(3)
    skies = 200 + draw.normal(0, 4, (2, 32, 32, 3))
    evaluated = np.concatenate([scenes(60, seed=0), skies[:1].astype(np.uint8)])
    used = np.concatenate([scenes(60, seed=1), skies[1:].astype(np.uint8)])
    assert search(evaluated, used).places.tolist() == []


def test_alike_tells_that_different_images_of_a_kind_lie_below_the_limit() -> None:
    evaluated = scenes(40, seed=0)
    evaluated[20:30] = [saved_again(image) for image in evaluated[:10]]
    found = search(evaluated, scenes(10, seed=1))
    assert found.alike == pytest.approx(0.5)
    assert found.places.tolist() == []


def test_single_evaluation_image_is_found_by_equal_pixels_alone() -> None:
    image, used = scenes(1, seed=0), scenes(5, seed=1)
    used[2] = image[0]
    used[4] = saved_again(image[0])
    found = search(image, used)
    assert (found.usual, found.places.tolist(), found.used.tolist()) == (None, [0], [2])
    told = found.to_dict(evaluated=["a"], used=list("vwxyz"))
    assert told["images"] == [{"id": "a", "used": "x", "distance": 0.0, "mirrored": False}]
    assert (told["exact"], told["near"], told["limit"]) == (1, 0, None)


def test_no_used_image_means_no_overlap() -> None:
    found = search(scenes(3, seed=0), scenes(1, seed=1)[:0])
    assert (found.compared, found.places.tolist()) == (0, [])


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ShapeError, match="expected the same"):
        search(scenes(3, seed=0), scenes(3, seed=0)[:, :16])
    with pytest.raises(ShapeError, match="at least one"):
        search(scenes(1, seed=0)[:0], scenes(3, seed=0))


def test_few_pairs_are_compared_pixel_by_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    plain = module.pixel_distances

    def count(first: Images, second: Images) -> NDArray[np.float32]:
        compared.append(len(first))
        return plain(first, second)

    monkeypatch.setattr(module, "pixel_distances", count)
    search(scenes(200, seed=0), scenes(500, seed=1))
    assert sum(compared) < 2 * 200 * 500 / 100
