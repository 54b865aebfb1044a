"""What a budget buys, and which natural images are drawn for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.synthesis.infer_budget import least_ipc, long_tailed, plan_budget
from hydistill_edge.synthesis.infer_draw import draw_natural, noisy_labels
from hydistill_edge.synthesis.infer_settings import CompensatorSettings

NAMES = tuple("abcde")


@pytest.mark.parametrize(
    ("classes", "networks", "ipc", "natural", "compensators", "stored", "per_class"),
    [
        (10, 4, 10, 7, 28, 98, 35),
        (10, 4, 50, 35, 140, 490, 175),
        (100, 4, 10, 9, 36, 936, 45),
        (100, 4, 50, 48, 192, 4992, 240),
        (100, 4, 100, 96, 384, 9984, 480),
        (200, 4, 10, 9, 36, 1836, 45),
        (200, 4, 50, 49, 196, 9996, 245),
        (1000, 3, 10, 9, 27, 9027, 36),
        (1000, 3, 50, 49, 147, 49147, 196),
    ],
)
def test_budget_is_that_of_the_published_table(
    classes: int,
    networks: int,
    ipc: int,
    natural: int,
    compensators: int,
    stored: int,
    per_class: int,
) -> None:
    budget = plan_budget(ipc, classes=classes, networks=networks)
    found = (budget.natural, budget.compensators, budget.stored, budget.per_class)
    assert found == (natural, compensators, stored, per_class)
    assert budget.stored <= budget.nominal


def test_bytes_of_a_budget_are_counted_by_hand() -> None:
    budget = plan_budget(3, classes=4, networks=1)  # 2 natural images per class, 2 compensators
    int8 = budget.bytes(values=12, storage="int8", labels=True)
    assert int8 == {"natural": 96, "compensators": 24, "labels": 128, "total": 248}
    half = budget.bytes(values=12, storage="float16", labels=False)
    assert half == {"natural": 96, "compensators": 48, "labels": 0, "total": 144}


@pytest.mark.parametrize(
    ("ipc", "natural", "said"),
    [(1, None, "expected at least 1: give ipc 2"), (10, 9, "expected at least 9: give ipc 13")],
    ids=["nothing", "too-many"],
)
def test_budget_is_refused_when_it_buys_too_few_images(
    ipc: int, natural: int | None, said: str
) -> None:
    with pytest.raises(MethodError, match=said):
        plan_budget(ipc, classes=10, networks=4, natural=natural)


def test_least_ipc_buys_the_natural_images_and_one_less_does_not() -> None:
    for natural in range(1, 30):
        ipc = least_ipc(natural, classes=10, networks=3)
        assert plan_budget(ipc, classes=10, networks=3).natural >= natural
        assert (ipc - 1) * 10 // 13 < natural


def test_long_tail_falls_from_the_first_class_to_the_last() -> None:
    assert long_tailed(100, classes=3, ratio=100).tolist() == [100, 10, 1]
    assert long_tailed(5, classes=4, ratio=1).tolist() == [5, 5, 5, 5]
    assert long_tailed(2, classes=3, ratio=1000).min() == 1


def draw(labels: np.ndarray, counts: list[int], **more: Any) -> Any:
    return draw_natural(
        labels,
        np.array(counts),
        networks=1,
        class_names=NAMES[: len(counts)],
        **{"seed": 0, **more},
    )


def test_every_slot_has_one_image_of_each_class_and_no_image_stands_twice() -> None:
    labels = np.arange(60) % 3
    drawn = draw(labels, [4, 4, 4])
    assert len(set(drawn.rows.tolist())) == len(drawn) == 12
    assert (labels[drawn.rows] == drawn.classes).all()
    for slot in range(4):
        assert drawn.classes[drawn.slots == slot].tolist() == [0, 1, 2]
    assert drawn.rows.tolist() != draw(labels, [4, 4, 4], seed=1).rows.tolist()


def test_later_slots_lack_classes_when_the_draw_is_long_tailed() -> None:
    drawn = draw(np.arange(60) % 3, [4, 2, 1])
    present = [drawn.classes[drawn.slots == slot].tolist() for slot in range(4)]
    assert present == [[0, 1, 2], [0, 1], [0], [0]]


def test_surest_images_are_drawn_when_confidences_are_given() -> None:
    confidences = np.linspace(0, 1, 20, dtype=np.float32)
    drawn = draw(np.arange(20) % 2, [3, 3], confidences=confidences)
    assert sorted(drawn.rows.tolist()) == [14, 15, 16, 17, 18, 19]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array([0, 0, 0, 1]), "b 1 of 3; add real images of them, or lower ipc to 2"),
        (np.array([0, 0, 0, -1]), "b 0 of 3; add real images of them$"),
    ],
    ids=["too-few", "none"],
)
def test_draw_is_refused_when_a_class_has_too_few_images(labels: np.ndarray, said: str) -> None:
    with pytest.raises(MethodError, match=said):
        draw(labels, [3, 3])


def test_label_noise_changes_the_share_asked_for_and_never_to_the_same_class() -> None:
    labels = np.arange(400) % 4
    labels[:100] = -1
    noisy = noisy_labels(labels, share=0.25, classes=4, seed=3)
    assert (noisy[:100] == -1).all()
    assert int((noisy != labels).sum()) == 75
    assert noisy[100:].min() == 0
    assert noisy.max() == 3
    assert (noisy_labels(labels, share=0.0, classes=4, seed=3) == labels).all()


def test_defaults_are_the_published_ones_at_32_px() -> None:
    found = CompensatorSettings()
    assert (found.iterations, found.learning_rate, found.bn, found.first_layer) == (
        *(1000, 0.25),
        *(1.0, 10.0),
    )
    assert (found.reach((32, 32)), found.reach((224, 224))) == (4, 32)
    assert (found.squeeze_epochs, found.squeeze_batch, found.squeeze_rate) == (200, 128, 0.1)
    assert (found.block_for((32, 32)), found.block_for((224, 224))) == (512, 32)


def test_settings_list_every_problem_when_values_are_out_of_range() -> None:
    with pytest.raises(
        UsageError,
        match=r"infer set settings: ipc is 0.*label_noise is 1.*storage \"int4\".*at least one of",
    ):
        CompensatorSettings(ipc=0, label_noise=1.0, storage="int4", teacher=False)  # type: ignore[arg-type]
