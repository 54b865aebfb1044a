"""Which images calibrate: balanced, disjoint by content, the same wherever they are stored."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydistill_edge.calibration.choose import Choice, Partition, choose, partition, pixel_digest
from hydistill_edge.errors import ShapeError, TransferSetError

CLASSES = ("a", "b", "c")


def make_images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 4, 4, 1), dtype=np.uint8)


def hashes_of(images: np.ndarray) -> np.ndarray:
    rows = b"".join(hashlib.sha256(image.tobytes()).digest() for image in images)
    return np.frombuffer(rows, np.uint8).reshape(len(images), 32)


def chosen(images: np.ndarray, labels: np.ndarray, **options: Any) -> Choice:
    fields: dict[str, Any] = {
        "images": lambda rows: images[rows],
        "hashes": hashes_of(images),
        "pseudo_labels": labels,
        "ids": [f"image-{row}" for row in range(len(images))],
        "classes": CLASSES,
    }
    return choose(**{**fields, **options})


def parted(origins: list[str], **options: Any) -> Partition:
    images = make_images(len(origins))
    fields: dict[str, Any] = {
        "hashes": hashes_of(images),
        "pseudo_labels": np.arange(len(origins)) % 3,
        "origins": np.array(origins),
        "may_ship": np.zeros(len(origins), bool),
        "calibration": 6,
        "parity": 8,
        "golden": 3,
        "seed": 0,
    }
    return partition(**{**fields, **options})


def test_choice_is_balanced_when_one_class_is_rare() -> None:
    labels = np.array([0] * 40 + [1] * 18 + [2] * 2)

    choice = chosen(make_images(60), labels, count=20)

    assert choice.per_class == {"a": 9, "b": 9, "c": 2}
    assert len(choice.rows) == len(set(choice.ids)) == 20
    assert choice.to_dict()["count"] == 20


def test_choice_digest_is_that_of_its_pixels_in_order() -> None:
    images = make_images(12)

    choice = chosen(images, np.arange(12) % 3, count=5)

    assert choice.digest == hashlib.sha256(images[choice.rows].tobytes()).hexdigest()
    assert choice.digest == pixel_digest(images[choice.rows])
    assert choice.ids == tuple(f"image-{row}" for row in choice.rows)


@pytest.mark.parametrize("scored", [False, True], ids=["by hash", "by confidence"])
def test_choice_is_of_the_same_images_when_they_are_stored_in_another_order(scored: bool) -> None:
    images, labels = make_images(30), np.arange(30) % 3
    scores = np.round(np.linspace(0, 1, 30), 1) if scored else None
    order = np.random.default_rng(1).permutation(30)

    first = chosen(images, labels, count=10, confidences=scores)
    moved = None if scores is None else scores[order]
    second = chosen(images[order], labels[order], count=10, confidences=moved)

    assert set(first.rows) == set(order[second.rows])


def test_choice_changes_when_the_seed_does() -> None:
    images, labels = make_images(60), np.arange(60) % 3

    assert (
        chosen(images, labels, count=9, seed=1).ids == chosen(images, labels, count=9, seed=1).ids
    )
    assert (
        chosen(images, labels, count=9, seed=1).ids != chosen(images, labels, count=9, seed=2).ids
    )


def test_choice_spreads_over_the_confidence_when_it_is_given() -> None:
    confidences = np.arange(30) // 3 / 10.0

    choice = chosen(make_images(30), np.arange(30) % 3, count=15, confidences=confidences)

    assert choice.per_class == {"a": 5, "b": 5, "c": 5}
    of_class = confidences[choice.rows[choice.rows % 3 == 0]]
    assert of_class.tolist() == [0.1, 0.3, 0.5, 0.7, 0.9]
    assert "spread over the teacher's confidence" in choice.reason


def test_choice_takes_all_and_says_so_when_too_few_images_are_there() -> None:
    images = make_images(5)
    images[4] = images[0]

    choice = chosen(images, np.zeros(5, int), count=256)

    assert choice.rows.tolist() == [0, 1, 2, 3]
    assert "4 of 4 images" in choice.reason
    assert "256 were asked for and no more are there" in choice.reason


def test_choice_leaves_out_what_is_excluded_by_content() -> None:
    images = make_images(10)

    choice = chosen(images, np.zeros(10, int), exclude=hashes_of(images[:8]))

    assert choice.rows.tolist() == [8, 9]


def test_choice_is_refused_when_nothing_is_left() -> None:
    images = make_images(3)

    with pytest.raises(TransferSetError, match="no image to calibrate with: 3 in the transfer set"):
        chosen(images, np.zeros(3, int), exclude=hashes_of(images))
    with pytest.raises(ShapeError, match="2 pseudo_labels for 3 hashes"):
        chosen(images, np.zeros(2, int))


def test_partition_takes_real_images_for_parity_and_others_for_the_rest() -> None:
    parts = parted(["real"] * 3 + ["synthetic"] * 60)

    assert set(parts.parity.tolist()) >= {0, 1, 2}
    assert len(parts.parity) == 8
    assert min(parts.golden) >= 3
    assert "calibration 6, parity 8, golden 3 (3 of parity real)" in parts.reason


@pytest.mark.parametrize(
    ("real", "synthetic", "expected"),
    [(40, 40, 4), (40, 10, 4), (30, 5, 6), (60, 3, 8), (0, 40, 0)],
    ids=["both enough", "few others", "fewer others", "no others left", "none real"],
)
def test_partition_fills_half_of_parity_with_real_images_or_more_when_others_lack(
    real: int, synthetic: int, expected: int
) -> None:
    parts = parted(["real"] * real + ["synthetic"] * synthetic)

    assert int((parts.parity < real).sum()) == expected


@pytest.mark.parametrize(
    ("real", "calibration", "kept"),
    [(49, 60, 0), (50, 60, 10), (500, 70, 64), (100, 12, 12), (100, 9, 0)],
    ids=["too few", "a fifth", "the most", "no more than calibrate", "too few calibrate"],
)
def test_partition_keeps_some_real_images_from_parity(
    real: int, calibration: int, kept: int
) -> None:
    asked = {"calibration": calibration, "parity": 2 * real, "golden": 3}
    parts = parted(["real"] * real + ["synthetic"] * (2 * real + 80), **asked)

    assert int((parts.parity < real).sum()) == real - kept
    assert len(parts.parity) == 2 * real


@pytest.mark.parametrize("ships", [0, 2, 9])
def test_partition_keeps_images_home_when_they_may_not_ship(ships: int) -> None:
    parts = parted(["real"] * 50, may_ship=np.arange(50) < ships)

    assert len(parts.golden) == min(ships, 3)
    assert all(row < ships for row in parts.golden)
    assert ("may leave the run directory" in parts.reason) == (ships < 3)


def test_partition_prefers_synthetic_and_sure_golden_images() -> None:
    confidences = np.tile([0.4, 0.4, 0.4, 0.9, 0.9, 0.9], 5)

    parts = parted(
        ["synthetic"] * 24 + ["web"] * 6, may_ship=np.ones(30, bool), confidences=confidences
    )

    assert all(row < 24 for row in parts.golden)
    assert set(confidences[parts.golden]) == {0.9}
    assert set(parts.golden % 3) == {0, 1, 2}


def test_partition_takes_procedural_images_where_the_others_lack_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    enough = parted(["synthetic"] * 17 + ["procedural"] * 20)
    for rows in (enough.calibration, enough.parity, enough.golden):
        assert rows.max() < 17

    short = ["procedural"] * 20 + ["synthetic"] * 14  # 17 are wanted
    mixed = parted(short)
    assert min(mixed.parity.min(), mixed.calibration.min()) < 20
    assert len(mixed.parity) == 8

    monkeypatch.setattr("hydistill_edge.calibration.partition.ENOUGH", 14)
    fewer = parted(short)
    rows = np.concatenate([fewer.calibration, fewer.parity, fewer.golden])
    assert rows.min() >= 20
    assert len(rows) <= 14


def test_partition_shrinks_in_proportion_when_too_few_images_are_there() -> None:
    parts = parted(["synthetic"] * 17, calibration=60, parity=100, golden=4)

    sizes = [len(parts.calibration), len(parts.parity), len(parts.golden)]
    assert sizes == [6, 10, 1]
    assert "asked for calibration 60, parity 100, golden 4, and too few" in parts.reason


def test_partition_is_refused_when_there_are_fewer_images_than_sets() -> None:
    with pytest.raises(TransferSetError, match="2 different images cannot be divided"):
        parted(["synthetic"] * 2)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_partition_sets_share_no_content_whatever_is_asked(data: st.DataObject) -> None:
    count = data.draw(st.integers(4, 40))
    kinds = st.sampled_from(["real", "web", "synthetic", "derived"])
    origins = data.draw(st.lists(kinds, min_size=count, max_size=count))
    images = make_images(count)
    copies = data.draw(st.lists(st.integers(0, count - 1), max_size=count - 4))
    images[: len(copies)] = images[copies]
    hashes = hashes_of(images)
    wanted = {key: data.draw(st.integers(0, 30)) for key in ("calibration", "parity", "golden")}
    scores = data.draw(st.sampled_from([None, np.linspace(0, 1, count)]))

    try:
        parts = parted(origins, hashes=hashes, confidences=scores, **wanted)
    except TransferSetError:
        return

    sets = {key: getattr(parts, key) for key in wanted}
    rows = np.concatenate(list(sets.values()))
    assert len(np.unique(hashes[rows], axis=0)) == len(rows)
    assert all(len(sets[key]) <= wanted[key] for key in wanted)
    assert all(origins[row] == "synthetic" for row in parts.golden)
