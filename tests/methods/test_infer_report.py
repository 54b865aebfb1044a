"""What `infer.json` measures."""

from __future__ import annotations

import numpy as np
import pytest

from hydistill_edge.methods.infer_report import _on_a_plane, boundary, closest_pairs, kind_line


def logits(rows: list[list[float]]) -> np.ndarray:
    return np.log(np.array(rows)).astype(np.float32)


def test_images_on_a_boundary_are_those_with_two_near_probabilities() -> None:
    answers = logits([[0.5, 0.45, 0.05], [0.6, 0.3, 0.1], [0.34, 0.33, 0.33], [0.9, 0.05, 0.05]])
    assert boundary(answers, margin=0.1) == {"share": 0.5, "images": 4}
    assert boundary(answers, margin=0.31) == {"share": 0.75, "images": 4}


def test_kind_is_told_by_what_is_named_as_intended_and_what_lies_on_a_boundary() -> None:
    answers = logits([[0.5, 0.45, 0.05], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.9, 0.05, 0.05]])
    assert kind_line(answers, np.array([0, 1, 2, 0]), margin=0.1) == {
        "images": 4,
        "named_as_intended": 0.75,
        "on_boundary": 0.25,
    }


def test_closest_pair_is_the_one_with_the_most_left_to_the_other_class() -> None:
    teacher = logits([[0.6, 0.3, 0.1], [0.4, 0.5, 0.1], [0.05, 0.15, 0.8], [0.7, 0.2, 0.1]])
    student = logits([[0.2, 0.7, 0.1], [0.2, 0.7, 0.1], [0.2, 0.2, 0.6], [0.9, 0.05, 0.05]])
    first, second, third = closest_pairs(student, teacher, ("cat", "dog", "ship"))
    assert first["classes"] == ["cat", "dog"]
    assert first["images"] == 3
    assert first["nearness"] == pytest.approx((0.3 + 0.4 + 0.2) / 3)
    assert first["confused"] == pytest.approx(1 / 3)
    assert second["nearness"] >= third["nearness"]


def test_pairs_that_no_image_is_of_are_left_out() -> None:
    one = logits([[0.8, 0.1, 0.05, 0.05]])
    found = closest_pairs(one, one, tuple("abcd"), count=9)
    assert [pair["classes"][0] for pair in found] == ["a", "a", "a"]


def test_points_of_a_cluster_stay_together_on_the_map() -> None:
    choice = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 12)
    features = (10 * choice.normal(size=(3, 8)))[labels] + choice.normal(size=(36, 8))
    features = features.astype(np.float32)

    places = _on_a_plane(features)

    distances = np.square(places[:, None] - places).sum(axis=2) + np.diag(np.full(36, np.inf))
    assert (labels[distances.argmin(axis=1)] == labels).all()
    np.testing.assert_array_equal(_on_a_plane(features.copy()), places)


@pytest.mark.parametrize("features", [np.ones((6, 3)), np.arange(5.0)[:, None]])
def test_map_is_finite_when_points_are_equal_or_of_one_number(features: np.ndarray) -> None:
    assert np.isfinite(_on_a_plane(features.astype(np.float32))).all()
