"""The score of a calibration set: its parts by hand, by brute force and by property."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hydistill_edge.calibration.coverage import Activations, summarize
from hydistill_edge.calibration.layer_quality import LayerMoments, LayerQuality
from hydistill_edge.calibration.quality import (
    LIMIT,
    LIMIT_BATCH_NORM,
    Quality,
    judge_quality,
)
from hydistill_edge.errors import InputError, ShapeError
from hydistill_edge.targets.base import Images

MODEL = Path("model.onnx")
Values = NDArray[np.float32]
EVEN = {"a": 5, "b": 5}


def summary_of(**tensors: Values) -> Activations:
    count = len(next(iter(tensors.values())))
    pixels = np.zeros((count, 1, 1, 1), np.uint8)
    return summarize(lambda *_: iter([tensors]), MODEL, list(tensors), pixels)


def normal(count: int, scale: float = 1.0, seed: int = 0) -> Values:
    drawn = np.random.default_rng(seed).normal(size=(count, 4, 8, 8)) * scale
    return drawn.astype(np.float32)


def judged(
    set_values: Values, real_values: Values, **options: Any
) -> tuple[Quality, LayerQuality, dict[str, float]]:
    """Judge a set of one tensor; return quality, the tensor, and the parts by name."""
    quality = judge_quality(
        EVEN, activations=summary_of(x=set_values), real=summary_of(x=real_values), **options
    )
    return quality, quality.layers[0], {part.name: part.value for part in quality.parts}


# --- parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((4, 4), 1.0),
        ((8, 0), 0.0),
        ((1, 0, 0), 1.0),  # one image cannot be of three classes
        ((7,), 1.0),
        ((3, 1), -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))),
    ],
)
def test_balance_is_the_normalized_entropy(counts: tuple[int, ...], expected: float) -> None:
    per_class = {str(place): count for place, count in enumerate(counts)}

    (balance,) = judge_quality(per_class).parts

    assert balance.name == "balance"
    assert balance.value == pytest.approx(expected)


def test_coverage_is_the_share_of_the_real_quantile_range_that_is_reached() -> None:
    real = np.linspace(0, 10, 4000, dtype=np.float32).reshape(10, 1, 20, 20)
    half = (real / 2).astype(np.float32)

    _, layer, parts = judged(half, real)

    assert layer.covered == pytest.approx(0.5, abs=0.01)
    assert layer.cut == pytest.approx(0.5, abs=0.01)
    assert layer.excess_bits == 0
    assert parts["coverage"] == layer.covered
    assert parts["tail"] == pytest.approx(0.002 / 0.502, rel=0.02)


def test_resolution_is_halved_when_the_set_reaches_twice_as_far() -> None:
    real = np.abs(normal(20))

    _, layer, parts = judged(real * 2, real)

    assert layer.covered == 1
    assert layer.cut == 0
    assert layer.excess_bits == pytest.approx(1)
    assert parts["resolution"] == pytest.approx(0.5)


def test_tail_mass_is_that_of_the_quantiles_when_both_are_alike() -> None:
    _, layer, _ = judged(normal(200), normal(200, seed=1))

    assert layer.tail_mass == pytest.approx(0.002, abs=0.0005)


@pytest.mark.parametrize("scale", [0.3, 1.0, 8.0], ids=["cuts", "fits", "wastes"])
def test_signal_is_that_of_quantizing_the_real_values(scale: float) -> None:
    real, calibration = normal(30, seed=1), normal(30, scale)
    low, high = float(calibration.min()), float(calibration.max())

    step = (high - low) / 255
    zero = round(-low / step)
    back = (np.clip(np.rint(real / step) + zero, 0, 255) - zero) * step
    noise = ((back - real) ** 2).sum((1, 2, 3)) / (real**2).sum((1, 2, 3))
    _, layer, _ = judged(calibration, real)

    assert layer.signal_db == pytest.approx(-10 * math.log10(np.median(noise)), abs=0.7)


def test_signal_is_of_the_ranges_handed_in_when_there_are_any() -> None:
    real = normal(30)

    wide, tight = (judged(real * 20, real, ranges=r)[1] for r in ({}, {"x": (-4.0, 4.0)}))

    assert (tight.low, tight.high) == (-4, 4)
    assert (tight.signal_db or 0) > (wide.signal_db or 0) + 20


def test_bn_distance_halves_its_part_at_the_distance_of_one_image() -> None:
    quality = judge_quality(EVEN, bn_distances={"bn1": 0.1, "bn2": 0.7})

    part = next(part for part in quality.parts if part.name == "bn_distance")
    assert part.value == pytest.approx(0.5)
    assert "most in bn2 (0.7)" in part.why
    assert quality.reference == "BatchNorm statistics"


def test_bn_part_is_zero_when_a_distance_is_not_finite() -> None:
    quality = judge_quality(EVEN, bn_distances={"bn1": 0.1, "bn2": math.nan})

    assert quality.parts[-1].value == 0
    assert quality.passed is False


def moments(mean: float, deviation: float) -> LayerMoments:
    """Two channels that remember N(0, 1) and N(1, 4); what they see is moved and scaled."""
    remembered = np.array([0.0, 1.0]), np.array([1.0, 2.0])
    seen_mean, seen_deviation = remembered[0] + mean, remembered[1] * deviation
    return LayerMoments("bn", seen_mean, seen_deviation**2, remembered[0], remembered[1] ** 2)


@dataclass(frozen=True)
class Moved:
    """How a layer's input moved, and what that covers and wastes."""

    id: str
    mean: float
    deviation: float
    covered: float
    bits: float


MOVED = [
    Moved("alike", 0.0, 1.0, 1.0, 0.0),
    Moved("half as wide", 0.0, 0.5, 0.5, 0.0),
    Moved("four times as wide", 0.0, 4.0, 1.0, 2.0),
    Moved("elsewhere", 100.0, 1.0, 0.0, 0.0),
]


@pytest.mark.parametrize("case", MOVED, ids=lambda case: case.id)
def test_moments_are_compared_channel_by_channel(case: Moved) -> None:
    (layer,) = judge_quality(EVEN, moments=[moments(case.mean, case.deviation)]).layers

    assert layer.covered == pytest.approx(case.covered)
    assert layer.excess_bits == pytest.approx(case.bits, abs=0.15)


# --- the score ----------------------------------------------------------------------------------


def test_score_is_one_when_the_set_is_the_reference() -> None:
    real = normal(50)

    quality, _, parts = judged(real, real, bn_distances={"bn": 0.0})

    assert quality.passed is True
    assert quality.advice == ()
    assert quality.limit == LIMIT
    assert min(parts.values()) > 0.99
    assert quality.score is not None
    assert quality.score > 0.99


def test_score_is_not_given_when_there_is_nothing_to_judge_by() -> None:
    quality = judge_quality(EVEN)

    assert quality.score is None
    assert quality.passed is None
    assert "20 real images" in quality.advice[0]
    assert quality.worst is None


def test_score_is_the_weighted_geometric_mean_of_the_parts() -> None:
    quality, _, _ = judged(normal(20, 0.5), normal(20, seed=1), bn_distances={"bn": 0.3})

    weights = np.array([part.weight for part in quality.parts])
    values = np.array([part.value for part in quality.parts])
    assert {part.name for part in quality.parts} == {
        *("signal", "coverage", "resolution", "tail", "balance", "bn_distance")
    }
    assert quality.score == pytest.approx(np.prod(values ** (weights / weights.sum())))


def test_gate_is_stricter_when_there_are_no_real_images() -> None:
    quality = judge_quality(EVEN, bn_distances={"bn": 0.2})

    assert quality.limit == LIMIT_BATCH_NORM > LIMIT


def test_batchnorm_decides_when_there_are_real_images_too() -> None:
    known = LayerMoments("bn", np.zeros(3), np.ones(3), np.zeros(3), np.ones(3))

    quality, _, parts = judged(
        normal(20, 0.2), normal(50, seed=1), moments=[known], bn_distances={"bn": 0.0}
    )

    weights = {part.name: part.weight for part in quality.parts}
    assert parts["signal"] < 0.9
    assert weights["signal"] == weights["tail"] == 0.0
    assert quality.limit == LIMIT_BATCH_NORM
    assert quality.passed is True
    assert quality.reference == "BatchNorm statistics; ranges beside those of 50 real images"
    assert quality.layers[0].signal_db is not None


def test_gate_takes_the_limit_that_is_handed_in() -> None:
    verdicts = [
        judge_quality(EVEN, bn_distances={"bn": 0.2}, limit=limit).passed for limit in (0.5, 0.99)
    ]

    assert verdicts == [True, False]


def test_quality_is_plain_json() -> None:
    quality, _, _ = judged(normal(20, 0.5), normal(20))

    read = json.loads(json.dumps(quality.to_dict()))

    assert read["score"] == quality.score
    assert read["layers"][0]["name"] == "x"
    assert {"name", "value", "weight", "why"} == set(read["parts"][0])


@pytest.mark.parametrize("factor", [17.0, 50.0])
def test_reference_is_freed_of_an_outlier(factor: float) -> None:
    real = normal(50)
    spoiled = real.copy()
    spoiled[7] *= factor

    _, clean, _ = judged(normal(50, seed=1), real)
    _, layer, _ = judged(normal(50, seed=1), spoiled)

    assert layer.reference_high == pytest.approx(clean.reference_high, rel=0.05)
    assert layer.covered == pytest.approx(clean.covered, abs=0.05)


# --- advice -------------------------------------------------------------------------------------


def test_advice_is_to_add_real_images_when_the_set_is_too_tame() -> None:
    quality, _, _ = judged(normal(20, 0.1), normal(20))

    assert quality.passed is False
    assert "do not reach what real ones do" in quality.advice[0]
    assert "20 real images" in quality.advice[0]


def test_advice_is_to_replace_images_when_the_set_reaches_too_far() -> None:
    quality, _, _ = judged(normal(20, 300), normal(20))

    assert quality.passed is False
    assert "reach too far" in quality.advice[0]
    assert "cannot repair that" in quality.advice[0]


def test_advice_names_the_layer_to_keep_in_float_when_it_makes_most_of_the_error() -> None:
    real = summary_of(x=normal(20), y=normal(20))
    calibration = summary_of(x=normal(20), y=normal(20, 400))

    quality = judge_quality(EVEN, activations=calibration, real=real)

    assert any("keep the layer that reads y in float" in line for line in quality.advice)
    assert quality.worst is not None
    assert quality.worst.name == "y"


@pytest.mark.parametrize(
    ("deviation", "expected"), [(0.2, "tamer than"), (9.0, "further than")], ids=["tame", "wild"]
)
def test_advice_without_real_images_is_about_the_inversion(deviation: float, expected: str) -> None:
    quality = judge_quality(
        {"a": 9, "b": 0}, moments=[moments(0, deviation)], bn_distances={"bn": 5.0}
    )

    text = " ".join(quality.advice)
    assert quality.passed is False
    for part in (expected, "invert the student itself", 'rare classes, "b" first', "20 real"):
        assert part in text


# --- properties ---------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 19))
def test_superset_never_covers_less(seed: int, size: int) -> None:
    values = normal(20, seed=seed) * np.random.default_rng(seed).lognormal(0, 1, (20, 1, 1, 1))
    candidates, real = values.astype(np.float32), normal(20, seed=seed + 1)

    (_, few, few_parts), (_, all_, all_parts) = (
        judged(part, real) for part in (candidates[:size], candidates)
    )

    assert few.covered <= all_.covered
    assert (few.cut or 0) >= (all_.cut or 0)
    assert few_parts["coverage"] <= all_parts["coverage"]
    assert few_parts["tail"] <= all_parts["tail"]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_score_depends_neither_on_order_nor_on_doubles(seed: int) -> None:
    calibration, real = normal(12, 0.7, seed), normal(12, seed=seed + 1)
    order = np.random.default_rng(seed).permutation(12)

    once, _, _ = judged(calibration, real)
    moved, _, _ = judged(calibration[order], real[order])
    twice, _, _ = judged(np.concatenate([calibration, calibration]), real)

    assert moved.score == pytest.approx(once.score, rel=1e-12)
    assert twice.score == pytest.approx(once.score, rel=1e-12)


# --- a real example -----------------------------------------------------------------------------


@lru_cache
def digits() -> tuple[Images, NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = np.clip(loaded.images * 16, 0, 255).astype(np.uint8)[..., None]
    return images, loaded.target.astype(np.int64)


def convolve(maps: Values, kernels: Values) -> Values:
    """3x3 convolution without padding; maps (N, C, H, W), kernels (K, C, 3, 3)."""
    windows = np.lib.stride_tricks.sliding_window_view(maps, (3, 3), axis=(2, 3))
    found = np.tensordot(windows, kernels, axes=((1, 4, 5), (1, 2, 3)))
    maps_out: Values = found.transpose(0, 3, 1, 2)
    return maps_out


@lru_cache
def whitened_kernels() -> Values:
    """Eight kernels that answer to digits with variance one, as a layer with BatchNorm does."""
    pixels = (digits()[0][:500].astype(np.float32).transpose(0, 3, 1, 2) - 128) / 64
    patches = np.lib.stride_tricks.sliding_window_view(pixels, (3, 3), axis=(2, 3)).reshape(-1, 9)
    variances, directions = np.linalg.eigh(np.cov(patches.T))
    kernels: Values = (directions / np.sqrt(variances)).T[:8].astype(np.float32)
    return kernels.reshape(8, 1, 3, 3)


def run_network(
    model: Path, names: Sequence[str], images: Images
) -> Iterator[Mapping[str, Values]]:
    """A whitening convolution, a random one, ReLUs, and the pooled features."""
    second = np.random.default_rng(0).normal(size=(12, 8, 3, 3)).astype(np.float32)
    for start in range(0, len(images), 32):
        pixels = (images[start : start + 32].astype(np.float32).transpose(0, 3, 1, 2) - 128) / 64
        hidden = np.maximum(convolve(pixels, whitened_kernels()), 0)
        deeper = np.maximum(convolve(hidden, second), 0)
        yield {"hidden": hidden, "deeper": deeper, "pooled": deeper.mean((2, 3))}


def score_of(images: Images) -> float:
    real, _ = digits()
    names = ("hidden", "deeper", "pooled")
    of_set, of_real = (
        summarize(run_network, MODEL, names, part) for part in (images, real[1000:1050])
    )
    score = judge_quality(EVEN, activations=of_set, real=of_real).score
    assert score is not None
    return score


def pixel_noise(count: int) -> Images:
    """Images with the digits' mean and deviation, and nothing else of them."""
    images, _ = digits()
    drawn = np.random.default_rng(0).normal(images.mean(), images.std(), (count, 8, 8, 1))
    noise: Images = drawn.clip(0, 255).astype(np.uint8)
    return noise


def test_noise_scores_below_real_digits() -> None:
    images, _ = digits()

    real, noise, grey = (
        score_of(part) for part in (images[:60], pixel_noise(60), np.full_like(images[:9], 128))
    )

    assert real > noise > grey
    assert real > LIMIT > grey


def test_noise_is_stopped_by_batchnorm_statistics_when_there_are_no_real_images() -> None:
    def layer_moments(images: Images) -> tuple[Values, Values]:
        pixels = (images.astype(np.float32).transpose(0, 3, 1, 2) - 128) / 64
        maps = convolve(pixels, whitened_kernels())
        return maps.mean((0, 2, 3)), maps.var((0, 2, 3))

    def judge(images: Images) -> Quality:
        (mean, variance), (known, known_variance) = layer_moments(images), remembered
        ratio = variance / known_variance
        offset = (mean - known) ** 2 / known_variance
        divergence = float(0.5 * np.mean(ratio + offset - 1 - np.log(ratio)))
        layer = LayerMoments("bn", mean, variance, known, known_variance)
        return judge_quality(EVEN, moments=[layer], bn_distances={"bn": divergence})

    images, _ = digits()
    remembered = layer_moments(images[500:])

    real, noise = judge(images[:100]), judge(pixel_noise(100))

    assert real.passed is True
    assert noise.passed is False
    assert real.score is not None
    assert noise.score is not None
    assert real.score > 0.9 > noise.score + 0.2


# --- bad input ----------------------------------------------------------------------------------


def test_quality_is_refused_when_the_input_does_not_fit() -> None:
    x, y = summary_of(x=normal(4)), summary_of(y=normal(4))

    with pytest.raises(InputError, match="has no image"):
        judge_quality({"a": 0})
    with pytest.raises(InputError, match=r"others \(x, y\); summarize both"):
        judge_quality(EVEN, activations=x, real=y)
    with pytest.raises(InputError, match="the limit is 2"):
        judge_quality(EVEN, bn_distances={"bn": 0.1}, limit=2)
    with pytest.raises(ShapeError, match='moments of "bn" have shapes'):
        LayerMoments("bn", np.zeros(2), np.zeros(3), np.zeros(2), np.zeros(2))
