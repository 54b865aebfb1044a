"""The choice of a pilot set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hydistill_edge.errors import MethodError, ShapeError
from hydistill_edge.images.pilot import Pilot, Synthetic, choose_pilot

NAMES = ("ok", "scratch", "dent")


def logits_of(classes: NDArray[np.int64], margin: NDArray[np.float64]) -> NDArray[np.float64]:
    logits = np.zeros((len(classes), 3))
    logits[np.arange(len(classes)), classes] = margin
    return logits


def candidates(count: int = 60) -> dict[str, Any]:
    """Return images of three classes in turn, surer from row to row."""
    rng = np.random.default_rng(0)
    classes = np.arange(count) % 3
    return {
        "images": rng.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8),
        "logits": logits_of(classes, np.linspace(2.0, 8.0, count)),
        "features": np.column_stack([10.0 * classes, rng.random(count)]),
        "class_names": NAMES,
    }


def made(counts: tuple[int, int, int] = (10, 10, 10), margin: float = 50.0) -> Synthetic:
    classes = np.repeat(np.arange(3), counts)
    rng = np.random.default_rng(1)
    return Synthetic(
        logits_of(classes, np.full(len(classes), margin)),
        np.column_stack([10.0 * classes, rng.random(len(classes))]),
        classes,
    )


def choose(kind: str, **changes: Any) -> Pilot:
    arguments = {**candidates(), "count": 9, **changes}
    if kind == "strategic":
        arguments = {"synthetic": made(), **arguments}
    images, logits = arguments.pop("images"), arguments.pop("logits")
    return choose_pilot(kind, images, logits, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["random", "confident", "selected", "strategic"])
def test_choice_has_the_asked_number_without_repeats_and_a_reason_each(kind: str) -> None:
    pilot = choose(kind)
    assert len(set(pilot.rows.tolist())) == len(pilot) == len(pilot.reasons) == 9
    assert all(pilot.reasons)
    assert np.array_equal(pilot.classes, pilot.rows % 3)


def test_random_choice_repeats_with_the_seed_only() -> None:
    first, second, other = (choose("random", seed=seed).rows for seed in (4, 4, 5))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert "seed 4" in choose("random", seed=4).reasons[0]


@pytest.mark.parametrize("kind", ["confident", "selected"])
def test_surest_images_are_taken_equally_of_each_class(kind: str) -> None:
    pilot = choose(kind)
    assert sorted(pilot.rows.tolist()) == list(range(51, 60))
    assert pilot.quotas == (3, 3, 3)
    assert "number 1 by the teacher's probability, 0.99" in pilot.reasons[0]


def test_threshold_keeps_unsure_images_out() -> None:
    pilot = choose("confident", count=60)
    assert pilot.confidences.min() > 0.95
    assert len(pilot) < 60
    assert any("of 20 wanted images, no more pass" in note for note in pilot.notes)


def test_selector_gives_a_rare_class_a_lower_bar() -> None:
    classes = np.array([0] * 30 + [1] * 30 + [2] * 3)
    margin = np.where(classes == 2, 1.0, 8.0)  # the teacher is half sure of the rare class
    changes = {"logits": logits_of(classes, margin), "images": candidates(63)["images"]}
    counts = {
        kind: np.bincount(choose(kind, features=None, **changes).classes, minlength=3).tolist()
        for kind in ("confident", "selected")
    }
    assert counts == {"confident": [3, 3, 0], "selected": [3, 3, 3]}


def test_near_duplicates_are_left_out() -> None:
    images = candidates()["images"].copy()
    images[56] = images[59] ^ 1  # of one class, the two surest, a grey level apart
    pilot = choose("confident", images=images)
    assert 59 in pilot.rows
    assert 56 not in pilot.rows
    assert pilot.near_duplicates == 1


def test_class_that_is_made_too_rarely_gets_a_larger_quota() -> None:
    pilot = choose("strategic", synthetic=made((19, 1, 10)), count=12)
    assert pilot.needs is not None
    assert pilot.needs[1].deficit == pytest.approx(0.9)
    assert pilot.needs[0].deficit == 0.0
    assert pilot.quotas is not None
    assert pilot.quotas[1] == max(pilot.quotas)
    assert sum(pilot.quotas) == 12
    assert any(
        reason.startswith("scratch: quota") and "90% short" in reason for reason in pilot.reasons
    )


def test_class_that_the_teacher_is_unsure_about_gets_a_larger_quota() -> None:
    synthetic = made()
    synthetic.logits[synthetic.asked == 2] *= 0.02
    pilot = choose("strategic", synthetic=synthetic, count=12)
    assert pilot.needs is not None
    assert pilot.needs[2].entropy > 0.8 > 0.1 > pilot.needs[0].entropy
    assert pilot.quotas is not None
    assert pilot.quotas[2] == max(pilot.quotas)


def test_image_far_from_all_synthetic_ones_is_taken_first() -> None:
    features = candidates()["features"].copy()
    features[30] += [0.0, 40.0]
    pilot = choose("strategic", features=features)
    assert pilot.rows[0] == 30
    assert "away from the nearest synthetic image" in pilot.reasons[0]


def test_two_far_images_side_by_side_are_not_both_taken_first() -> None:
    features = candidates()["features"].copy()
    features[[30, 33]] += [0.0, 40.0]
    features[36] -= [0.0, 20.0]
    features[33] = features[30] + 0.01
    assert choose("strategic", features=features).rows[:2].tolist() in ([30, 36], [33, 36])


def test_gap_is_the_share_of_candidates_without_a_synthetic_neighbour() -> None:
    synthetic = made()
    synthetic.features[synthetic.asked == 1] += 1000.0
    needs = choose("strategic", synthetic=synthetic).needs
    assert needs is not None
    assert needs[1].gap == 1.0
    assert needs[0].gap < 0.5


def test_quota_that_a_class_cannot_fill_goes_to_others() -> None:
    classes = np.array([0] * 40 + [1] * 2 + [2] * 18)
    logits = logits_of(classes, np.full(60, 8.0))
    pilot = choose("strategic", logits=logits, count=30)
    assert pilot.quotas is not None
    assert pilot.quotas[1] == 2
    assert sum(pilot.quotas) == 30


def test_absent_class_is_told() -> None:
    logits = logits_of(np.zeros(60, np.int64), np.full(60, 8.0))
    pilot = choose("confident", logits=logits)
    assert "no candidate is of class scratch, dent for the teacher" in pilot.notes


def test_choice_is_told_as_plain_values() -> None:
    pilot = choose("strategic")
    told = pilot.to_dict(ids=[f"image-{row}" for row in range(60)], class_names=NAMES)
    assert told["images"][0]["id"] == f"image-{pilot.rows[0]}"
    assert [entry["chosen"] for entry in told["per_class"]] == np.bincount(pilot.classes).tolist()
    assert set(told["per_class"][0]["need"]) == {"deficit", "entropy", "gap"}


@pytest.mark.parametrize(
    ("kind", "changes", "error", "message"),
    [
        ("random", {"count": 2}, MethodError, "2 images for 3 classes"),
        ("random", {**candidates(2), "count": 3}, MethodError, "2 candidates for 3 classes"),
        ("confident", {"threshold": 0.9999}, MethodError, "no candidate of 60 passes"),
        ("strategic", {"synthetic": None}, MethodError, "make some first"),
        ("random", {"logits": np.zeros((5, 3))}, ShapeError, "expected"),
    ],
    ids=["count", "candidates", "threshold", "no-synthetic", "shapes"],
)
def test_choice_is_refused_when_it_cannot_be_made(
    kind: str, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        choose(kind, **changes)
