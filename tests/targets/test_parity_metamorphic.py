"""R6 finds the ways in which a runner can contradict itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from hydistill_edge.errors import ShapeError
from hydistill_edge.targets.metamorphic import extreme_images, r6_metamorphic
from hydistill_edge.targets.parity import Rung, run_in_batches

RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 256, (12, 4, 4, 1), dtype=np.uint8)
IDS = [f"img-{i}" for i in range(12)]
WEIGHTS = RNG.normal(size=(16, 3)).astype(np.float32)

Run = Callable[[np.ndarray], np.ndarray]


def linear(images: np.ndarray) -> np.ndarray:
    """An honest runner: each row depends on its own image alone."""
    z = (images.reshape(len(images), -1).astype(np.float32) - 128) / 64
    return np.stack([row @ WEIGHTS for row in z])


def fixed(batch: int) -> Run:
    def run(images: np.ndarray) -> np.ndarray:
        assert len(images) == batch, "a fixed batch takes nothing else"
        return linear(images)

    return run


def judge(run: Run, batch: int | None = None) -> Rung:
    return r6_metamorphic(run, IMAGES, IDS, batch=batch, repeats=5)


def failed(rung: Rung) -> set[str]:
    return {gate.name for gate in rung.gates if gate.passed is False}


@pytest.mark.parametrize(
    ("run", "batch", "gates"),
    [
        pytest.param(linear, None, 9, id="dynamic"),
        pytest.param(fixed(5), 5, 8, id="fixed-5"),
        pytest.param(fixed(1), 1, 6, id="fixed-1"),
    ],
)
def test_honest_runner_passes_every_check_that_its_batch_allows(
    run: Run, batch: int | None, gates: int
) -> None:
    rung = judge(run, batch)

    assert rung.passed is True
    assert len(rung.gates) == gates


def test_note_says_what_cannot_be_checked_when_the_batch_is_1() -> None:
    assert "fixed at 1" in judge(fixed(1), 1).note


def test_equal_images_fail_when_the_row_changes_the_answer() -> None:
    rung = judge(lambda images: linear(images) + np.arange(len(images))[:, None])

    assert "difference by equal images in one batch" in failed(rung)
    assert "difference by order of the images" in failed(rung)


def test_neighbors_fail_when_the_batch_is_normalized_together() -> None:
    rung = judge(lambda images: linear(images) - linear(images).mean(axis=0))

    assert {
        "difference by other neighbors in the batch",
        "difference by batch 1 against a full batch",
    } <= failed(rung)


def test_repetition_fails_when_the_answer_drifts() -> None:
    count = itertools.count()

    rung = judge(lambda images: linear(images) + np.float32(next(count)), 12)

    assert "difference by the same images 5 times" in failed(rung)


def test_extremes_fail_when_white_overflows() -> None:
    def overflowing(images: np.ndarray) -> np.ndarray:
        white = (images == 255).all(axis=(1, 2, 3))
        return np.where(white[:, None], np.float32(np.inf), linear(images))

    assert failed(judge(overflowing)) == {"extreme images with NaN or infinity"}


def test_nan_fails_every_comparison_that_it_touches() -> None:
    rung = judge(lambda images: np.full((len(images), 3), np.nan, np.float32))

    assert rung.passed is False
    assert "samples with NaN or infinity" in failed(rung)
    assert rung.metrics is not None
    assert rung.metrics["scale"] is None


def test_reused_buffer_fails_when_a_later_run_overwrites_an_earlier_result() -> None:
    buffer = np.empty((1, 3), np.float32)

    def reusing(images: np.ndarray) -> np.ndarray:
        buffer[:] = linear(images)
        return buffer

    assert failed(judge(reusing, 1)) == {"values of an earlier result changed by a later run"}


def test_input_fails_when_the_runner_writes_into_it() -> None:
    def writing(images: np.ndarray) -> np.ndarray:
        logits = linear(images)
        images[...] = 0
        return logits

    assert "input pixels changed by the run" in failed(judge(writing))


def test_worst_names_the_image_that_is_answered_differently() -> None:
    def moody(images: np.ndarray) -> np.ndarray:
        hit = (images == IMAGES[4]).all(axis=(1, 2, 3)) & (len(images) == 1)
        return np.asarray(linear(images) + hit[:, None])

    gate = next(g for g in judge(moody).gates if g.name.endswith("full batch"))

    assert (gate.passed, gate.worst) == (False, "img-4")


def test_extreme_images_saturate_every_channel_alone() -> None:
    images = extreme_images((2, 2, 3))

    assert images.shape == (9, 2, 2, 3)
    assert images[3, 0, 0].tolist() == [255, 0, 0]
    assert images[4, 0, 0].tolist() == [0, 255, 255]


def test_run_in_batches_fills_up_the_last_batch_when_it_is_short() -> None:
    np.testing.assert_array_equal(run_in_batches(fixed(5), IMAGES, 5), linear(IMAGES))


def test_run_in_batches_refuses_logits_without_a_row_per_image() -> None:
    with pytest.raises(ShapeError, match="check the model's fixed batch"):
        run_in_batches(lambda images: linear(images)[:1], IMAGES, 4)
