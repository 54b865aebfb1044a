"""The artifact beside the student on control images: what counts, and what does not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hydistill_edge.calibration.control import judge_control
from hydistill_edge.calibration.select import EQUAL_SNR_DB
from hydistill_edge.errors import ShapeError

LOGITS = np.random.default_rng(0).normal(0, 3, (33, 5)).astype(np.float32)


def test_signal_is_that_of_a_hand_sized_example() -> None:
    # Without their means: (1, -1) and an error of (0.1, -0.1), 20 dB; then 40 dB, then 6.02 dB.
    reference = np.array([[3.0, 1.0], [2.0, 0.0], [1.0, -1.0]], np.float32)
    found = np.array([[3.1, 0.9], [2.01, -0.01], [1.5, -1.5]], np.float32)
    told = judge_control(reference, found)
    assert told.signal_db == pytest.approx(20.0, abs=1e-4)
    assert (told.images, told.agreement) == (3, 1.0)
    assert judge_control(reference[2:], found[2:]).signal_db == pytest.approx(20 * math.log10(2))


def test_what_no_decision_depends_on_does_not_count() -> None:
    shifted = LOGITS + np.linspace(-5, 5, len(LOGITS), dtype=np.float32)[:, None]
    assert judge_control(LOGITS, shifted).signal_db > 100


def test_one_image_far_out_says_nothing_of_the_others() -> None:
    noisy = LOGITS + np.float32(0.03) * np.random.default_rng(1).normal(size=LOGITS.shape)
    usual = judge_control(LOGITS, noisy.astype(np.float32)).signal_db
    far = LOGITS.copy(), noisy.astype(np.float32)
    far[0][0] *= 1000
    far[1][0] *= -1000
    assert judge_control(*far).signal_db == pytest.approx(usual, abs=1.0)


def test_more_noise_is_less_signal() -> None:
    noise = np.random.default_rng(1).normal(size=LOGITS.shape)
    found = [
        judge_control(LOGITS, (LOGITS + scale * noise).astype(np.float32)).signal_db
        for scale in (0.01, 0.1, 1.0)
    ]
    assert np.diff(found) == pytest.approx([-20, -20], abs=0.1)


def test_logits_that_are_equal_or_not_finite_have_the_ends_of_the_scale() -> None:
    assert judge_control(LOGITS, LOGITS).signal_db == EQUAL_SNR_DB
    broken = judge_control(LOGITS, np.full_like(LOGITS, np.nan))
    assert (broken.signal_db, broken.agreement) == (-EQUAL_SNR_DB, 0.0)
    flat = judge_control(np.zeros_like(LOGITS), LOGITS)
    assert flat.signal_db == -EQUAL_SNR_DB


@pytest.mark.parametrize("found", [LOGITS[:5], LOGITS[:, :3]])
def test_logits_of_other_shapes_are_refused(found: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="expected the same"):
        judge_control(LOGITS, found)
    with pytest.raises(ShapeError, match="N >= 1"):
        judge_control(LOGITS[:0], LOGITS[:0])
