"""Which images of a pool teacher and student select together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from hydistill_edge.errors import MethodError, ShapeError, UsageError
from hydistill_edge.images.selection import (
    PoolBatch,
    Scores,
    class_thresholds,
    combined_confidence,
    score_pool,
    select,
    teacher_share,
)


def scores_of(confidences: Sequence[float], classes: Sequence[int], *, count: int = 3) -> Scores:
    rows = np.arange(len(confidences)) + 100
    zeros = np.zeros(len(rows), np.float32)
    return Scores(
        rows, np.array(confidences, np.float32), np.array(classes), zeros, share=0.5,
        class_count=count,
    )  # fmt: skip


def pool_of(
    teacher: Tensor, *, order: Sequence[int] | None = None, batch: int = 3
) -> Iterator[PoolBatch]:
    """Batches whose images are their rows: image i is filled with the value i."""
    rows = np.arange(len(teacher)) if order is None else np.array(order)
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        images = torch.from_numpy(part).to(torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
        yield PoolBatch(part, images, teacher[part])


@pytest.mark.parametrize(
    ("epoch", "share"),
    [(1, 0.992), (20, 0.977), (40, 0.937), (60, 0.853), (80, 0.704), (100, 0.493), (119, 0.268)],
)
def test_teacher_share_is_as_published(epoch: int, share: float) -> None:
    assert teacher_share(epoch) == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize("epoch", [120, 160, 240])
def test_student_decides_alone_from_the_takeover_on(epoch: int) -> None:
    assert teacher_share(epoch) == 0.0


def test_class_thresholds_are_as_published() -> None:
    ratios, thresholds = class_thresholds(np.array([100, 80, 50, 20, 5, 0]))
    assert ratios.tolist() == [1.0, 0.8, 0.5, 0.2, 0.05, 0.0]
    assert thresholds.round(2).tolist() == [0.95, 0.63, 0.32, 0.11, 0.02, 0.0]


def test_thresholds_count_unsure_predictions_too() -> None:
    # Of class 1, no image is sure; its ratio is 1 all the same, unlike FlexMatch's.
    found = select(scores_of([0.99, 0.99, 0.4, 0.4], [0, 0, 1, 1]))
    assert found.ratios.tolist() == [1.0, 1.0, 0.0]
    assert found.selected.tolist() == [2, 0, 0]


def test_image_is_selected_only_when_it_exceeds_the_bar_of_its_class() -> None:
    # Class 1 has half of class 0's images: its bar is 0.95 · 0.5 / 1.5 = 0.3167.
    found = select(scores_of([0.96, 0.94, 0.95, 0.99, 0.32, 0.31], [0, 0, 0, 0, 1, 1]))
    assert found.rows.tolist() == [100, 103, 104]
    assert found.predicted.tolist() == [4, 2, 0]
    assert found.by_threshold


def test_rare_class_admits_every_image_predicted_as_it() -> None:
    # 1/C is the least a confidence can be: the bar does nothing below r = 2 / (1 + 0.95 C).
    classes = [0] * 40 + [1]
    found = select(scores_of([0.2] * 40 + [0.34], classes), minimum=0)
    assert found.thresholds[1] < 1 / 3
    assert found.rows.tolist() == [140]


def test_logits_and_not_probabilities_are_combined() -> None:
    student, teacher = torch.tensor([[0.0, 10.0]]), torch.tensor([[1.0, 0.0]])
    mixed, place = combined_confidence(student, teacher, share=0.5)
    scaled, _ = combined_confidence(student, teacher, share=0.5, combine="probabilities")
    assert mixed.item() == pytest.approx(1 / (1 + np.exp(-4.5)), abs=1e-6)
    assert place.item() == 1
    assert scaled.item() == pytest.approx(0.5 * (1.0 + 1 / (1 + np.e)), abs=1e-4)


def test_confidence_equals_a_reference_in_float64() -> None:
    draw = np.random.default_rng(0)
    student, teacher = draw.normal(size=(2, 20, 5))
    u = 0.3 * teacher + 0.7 * student
    p = np.exp(u) / np.exp(u).sum(1, keepdims=True)
    best, place = combined_confidence(
        torch.from_numpy(student), torch.from_numpy(teacher), share=0.3
    )
    np.testing.assert_allclose(best.numpy(), p.max(1), rtol=1e-5)
    np.testing.assert_array_equal(place.numpy(), p.argmax(1))


def test_shapes_must_agree() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 3\).*\(2, 4\)"):
        combined_confidence(torch.zeros(2, 3), torch.zeros(2, 4), share=0.5)


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_ids_are_kept_when_the_pool_is_read_in_another_order(batch: int) -> None:
    teacher = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)) * 3
    plain = score_pool(pool_of(teacher), student=None, share=1.0, classes=3)
    shuffled = score_pool(
        pool_of(teacher, order=[4, 0, 6, 2, 5, 1, 3], batch=batch),
        student=None, share=1.0, classes=3,
    )  # fmt: skip
    assert shuffled.rows.tolist() == list(range(7))
    np.testing.assert_array_equal(shuffled.classes, plain.classes)
    np.testing.assert_allclose(shuffled.confidences, plain.confidences, rtol=1e-6)


def test_student_is_not_asked_when_the_teacher_decides_alone() -> None:
    def refuse(images: Tensor) -> Tensor:
        raise AssertionError("the student was asked")

    scores = score_pool(pool_of(torch.eye(3)), student=refuse, share=1.0, classes=3)
    assert scores.disagreements.tolist() == [0.0, 0.0, 0.0]


def test_student_is_asked_without_gradients_and_its_distance_is_kept() -> None:
    weight = torch.ones(3, requires_grad=True)

    def student(images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return images.float().mean((1, 2, 3))[:, None] * weight

    scores = score_pool(pool_of(torch.zeros(3, 3)), student=student, share=0.0, classes=3)
    np.testing.assert_allclose(scores.disagreements, np.sqrt(3) * np.arange(3), rtol=1e-6)


def test_selection_is_the_same_twice() -> None:
    teacher = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 4
    first, second = (
        select(score_pool(pool_of(teacher), student=lambda x: x[:, 0, 0, :1].expand(-1, 3).float(),
                          share=0.9, classes=3))
        for _ in range(2)
    )  # fmt: skip
    assert first.rows.tolist() == second.rows.tolist()
    assert 0 < len(first) < 50


def test_best_hundredth_is_taken_and_said_when_too_few_pass() -> None:
    confidences = np.linspace(0.1, 0.9, 400)
    found = select(scores_of(confidences.tolist(), [0] * 400), minimum=8)
    assert found.rows.tolist() == [496, 497, 498, 499]
    assert not found.by_threshold
    assert "no image passes of 400" in found.notes[-1]
    assert "4 most confident" in found.notes[-1]


def test_small_selection_stays_when_the_fallback_would_be_smaller() -> None:
    found = select(scores_of([0.99] * 3 + [0.5] * 3, [0] * 6), minimum=4)
    assert len(found) == 3
    assert found.by_threshold
    assert "so they stay" in found.notes[-1]


def test_selection_is_refused_when_no_image_passes_and_nothing_stands_in() -> None:
    with pytest.raises(MethodError, match=r"reaches 0\.500.*more than 0\.950.*lower the threshold"):
        select(scores_of([0.4, 0.5], [0, 0]), fallback_share=0.0)


def test_absent_class_is_said() -> None:
    found = select(scores_of([0.99], [1]), class_names=("bolt", "nut", "washer"))
    assert found.notes[0] == "no image of the pool is taken for 2 classes: bolt, washer"
    assert found.thresholds.tolist() == [0.0, 0.95, 0.0]


def test_accepted_image_is_selected_whatever_its_score() -> None:
    found = select(scores_of([0.99, 0.2], [0, 0]), accepted=np.array([101]))
    assert found.rows.tolist() == [100, 101]


@pytest.mark.parametrize(
    ("teacher", "said"),
    [(torch.full((2, 3), torch.nan), "not finite"), (torch.zeros(0, 3), "no image")],
    ids=["nan", "empty"],
)
def test_pool_is_refused_when_it_gives_no_scores(teacher: Tensor, said: str) -> None:
    with pytest.raises(MethodError, match=said):
        score_pool(pool_of(teacher), student=None, share=1.0, classes=3)


def test_row_that_comes_twice_is_refused() -> None:
    with pytest.raises(MethodError, match="row 1 of the pool was scored twice"):
        score_pool(pool_of(torch.eye(3), order=[0, 1, 1]), student=None, share=1.0, classes=3)


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match=r"share 1\.5"):
        score_pool(pool_of(torch.eye(3)), student=None, share=1.5, classes=3)
    with pytest.raises(UsageError, match="there is none"):
        score_pool(pool_of(torch.eye(3)), student=None, share=0.5, classes=3)
    with pytest.raises(UsageError, match="threshold 1"):
        select(scores_of([0.9], [0]), threshold=1.0)


def test_selection_becomes_plain_values() -> None:
    plain = select(scores_of([0.99, 0.2], [0, 1])).to_dict(("bolt", "nut", "washer"))
    assert (plain["pool"], plain["selected"], plain["teacher_share"]) == (2, 1, 0.5)
    assert plain["per_class"][0] == {
        "class": "bolt", "predicted": 1, "ratio": 1.0, "threshold": 0.95, "selected": 1,
    }  # fmt: skip
