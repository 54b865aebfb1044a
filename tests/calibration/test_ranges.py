"""Range estimators: by hand, against brute force, and by property."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hydistill_edge.calibration.ranges import (
    BINS,
    METHODS,
    Histogram,
    Range,
    entropy_range,
    estimate_ranges,
    make_estimator,
    mse_range,
    percentile_range,
    rounded,
)
from hydistill_edge.errors import InputError
from hydistill_edge.targets.base import ActivationReader, Images, Scheme

MODEL = Path("model.onnx")
Values = NDArray[np.float32]


def reading(*batches: Values) -> ActivationReader:
    """A reader that knows no runtime: it yields what was written down, as tensor "x"."""

    def read(
        model: Path, tensors: Sequence[str], images: Images
    ) -> Iterator[Mapping[str, NDArray[np.float32]]]:
        yield from ({"x": batch} for batch in batches)

    return read


def range_of(*batches: Values, method: str = "minmax", symmetric: bool = True) -> Range:
    images = np.zeros((1, 1, 1, 1), dtype=np.uint8)
    reader = reading(*batches)
    return estimate_ranges(reader, MODEL, ["x"], images, method=method, symmetric=symmetric)["x"]


def histogram_of(values: Values, bins: int = BINS) -> Histogram:
    histogram = Histogram(float(values.min()), float(values.max()), np.zeros(bins, dtype=np.int64))
    histogram.add(values)
    return histogram


def normal(count: int = 20_000, seed: int = 0) -> Values:
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


HAND = np.array([[-1.0, 0.0, 2.0], [3.0, -0.5, 1.0]], dtype=np.float32)


def test_minmax_range_is_the_extremes_when_asymmetric() -> None:
    assert range_of(HAND, symmetric=False) == Range(-1.0, 3.0)


def test_minmax_range_mirrors_the_greater_side_when_symmetric() -> None:
    assert range_of(HAND) == Range(-3.0, 3.0)


def test_minmax_range_spans_all_batches() -> None:
    assert range_of(HAND, -4 * HAND, symmetric=False) == Range(-12.0, 4.0)


def test_histogram_counts_by_hand() -> None:
    histogram = histogram_of(np.array([-3, -1, 0, 1, 1, 3], dtype=np.float32), bins=6)

    assert histogram.counts.tolist() == [1, 0, 1, 1, 2, 1]
    assert histogram.magnitudes.tolist() == [2, 2, 2]
    assert histogram.centers.tolist() == [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]


def test_rounded_values_by_hand() -> None:
    values = np.array([-2.0, -1.0, 0.0, 0.3, 1.0])

    assert rounded(values, -1.27, 1.27, True) == pytest.approx([-1.28, -1.0, 0.0, 0.3, 1.0])
    assert rounded(values, -0.55, 2.0, False) == pytest.approx([-0.55, -0.55, 0.0, 0.3, 1.0])


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_percentile_range_agrees_with_numpy(symmetric: bool) -> None:
    values = normal()
    histogram = histogram_of(values)

    found = percentile_range(histogram, symmetric, 99.0)

    expected = (
        (-np.quantile(np.abs(values), 0.99), np.quantile(np.abs(values), 0.99))
        if symmetric
        else (np.quantile(values, 0.005), np.quantile(values, 0.995))
    )
    assert found == pytest.approx(expected, abs=histogram.width)


def squared_error(values: Values, found: Range, symmetric: bool) -> float:
    exact = values.astype(np.float64)
    return float(np.sum((exact - rounded(exact, found.low, found.high, symmetric)) ** 2))


MSE_CASES = {
    "normal": normal(4_000),
    "relu": np.maximum(normal(4_000), 0),
    "heavy-tail": normal(4_000) ** 3,
    "shifted": normal(4_000) + 2,
    "negative": -np.abs(normal(4_000)),
}


@pytest.mark.parametrize("values", MSE_CASES.values(), ids=MSE_CASES.keys())
def test_mse_range_is_as_good_as_brute_force_when_symmetric(values: Values) -> None:
    limit = float(np.abs(values).max())
    tried = [Range(-a, a) for a in limit * np.linspace(0.005, 1, 400)]
    least = min(squared_error(values, candidate, True) for candidate in tried)

    found = mse_range(histogram_of(values), True)

    assert squared_error(values, found, True) <= 1.03 * least


@pytest.mark.parametrize("values", MSE_CASES.values(), ids=MSE_CASES.keys())
def test_mse_range_is_as_good_as_brute_force_when_asymmetric(values: Values) -> None:
    low, high = min(float(values.min()), 0), max(float(values.max()), 0)
    ends = np.linspace(0.04, 1, 25)
    tried = [Range(low * a, high * b) for a in ends for b in ends if low * a < high * b]
    least = min(squared_error(values, candidate, False) for candidate in tried)

    found = mse_range(histogram_of(values), False)

    assert squared_error(values, found, False) <= 1.03 * least


def divergence_by_loops(counts: list[float], size: int, levels: int) -> float:
    """KL of the reference of Migacz's slides, one bin at a time."""
    reference = counts[:size]
    reference[-1] += sum(counts[size:])
    candidate = [0.0] * size
    for level in range(levels):
        members = [j for j in range(size) if j * levels // size == level and counts[j] > 0]
        for j in members:
            candidate[j] = sum(counts[k] for k in members) / len(members)
    p = [x / sum(reference) for x in reference]
    candidate = [x or 1e-4 for x in candidate]
    total = sum(c for c, x in zip(candidate, p, strict=True) if x > 0)
    q = [x / total for x in candidate]
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


@pytest.mark.parametrize("power", [1, 3], ids=["normal", "heavy-tail"])
def test_entropy_range_equals_brute_force(power: int) -> None:
    histogram = histogram_of(normal(3_000) ** power, bins=320)
    counts = [float(count) for count in histogram.magnitudes]
    counts[0] = counts[1]
    scores = {size: divergence_by_loops(counts, size, 128) for size in range(128, 161)}
    best = min(scores, key=lambda size: scores[size])

    found = entropy_range(histogram, True)

    assert found.high == pytest.approx(min(best * histogram.width, histogram.limit))


def test_every_range_lies_within_minmax() -> None:
    values = normal() ** 3
    for symmetric in (True, False):
        widest = range_of(values, symmetric=symmetric)
        for method in METHODS:
            found = range_of(values, method=method, symmetric=symmetric)
            assert widest.low <= found.low <= 0 <= found.high <= widest.high


@given(st.lists(st.floats(55, 100), min_size=2, max_size=2).map(sorted), st.booleans())
@settings(max_examples=25, deadline=None)
def test_percentile_ranges_nest(percentiles: list[float], symmetric: bool) -> None:
    histogram = histogram_of(normal(2_000))
    inner, outer = (percentile_range(histogram, symmetric, p) for p in percentiles)

    assert outer.low <= inner.low <= inner.high <= outer.high


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_order_and_size_of_batches_do_not_matter(method: str, symmetric: bool) -> None:
    values = normal(4_000)
    shuffled = np.random.default_rng(1).permutation(values)

    together = range_of(values, method=method, symmetric=symmetric)
    apart = range_of(shuffled[3_000:], shuffled[:3_000], method=method, symmetric=symmetric)

    assert apart == together


@pytest.mark.parametrize("method", METHODS)
def test_relu_tensor_starts_at_zero_when_asymmetric(method: str) -> None:
    found = range_of(np.maximum(normal(), 0), method=method, symmetric=False)

    assert found.low == 0
    assert found.high > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 5.0, -5.0], ids=["zero", "positive", "negative"])
def test_constant_tensor_keeps_its_value(method: str, value: float) -> None:
    values = np.full(1_000, value, dtype=np.float32)

    found = range_of(values, method=method, symmetric=False)

    assert found.low == pytest.approx(min(value, 0), rel=0.01)
    assert found.high == pytest.approx(max(value, 0), rel=0.01)


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_one_outlier_does_not_stretch_the_range(method: str) -> None:
    values = np.append(normal(400_000), np.float32(60))

    assert range_of(values).high == 60
    assert range_of(values, method=method).high < 40


@pytest.mark.parametrize("method", METHODS)
def test_nearly_dead_first_batch_does_not_matter(method: str) -> None:
    # Histograms that grow in bins of the first batch would need billions of them here.
    tiny = np.full(1_000, 1e-6, np.float32)

    found = range_of(tiny, 5 * np.abs(normal(4_000)), method=method, symmetric=False)

    assert found.low == 0
    assert 5 < found.high < 25


@pytest.mark.parametrize("method", METHODS)
def test_denormal_tensor_has_a_range(method: str) -> None:
    found = range_of(np.full(10, 1e-40, np.float32), method=method, symmetric=False)

    assert found == pytest.approx((0, 0))


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_made_estimator_follows_the_scheme(symmetric: bool) -> None:
    scheme = Scheme("x", "qdq", "int8", "int8", symmetric, True, False, "minmax", "")
    images = np.zeros((1, 1, 1, 1), dtype=np.uint8)

    found = make_estimator(reading(HAND), images, scheme)(MODEL, ["x"])

    assert found == {"x": (-3.0 if symmetric else -1.0, 3.0)}


def test_minmax_runs_the_model_once() -> None:
    runs = []

    def read(
        model: Path, tensors: Sequence[str], images: Images
    ) -> Iterator[Mapping[str, NDArray[np.float32]]]:
        runs.append(tuple(tensors))
        yield {"x": HAND}

    estimate_ranges(read, MODEL, ["x"], np.zeros((1, 1, 1, 1), np.uint8))

    assert runs == [("x",)]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ((), "no batch"),
        ((np.array([np.nan], np.float32),), 'tensor "x" reaches from nan'),
        ((np.array([1, np.inf], np.float32),), "to inf"),
    ],
    ids=["no-images", "nan", "infinite"],
)
def test_estimate_refuses_what_gives_no_range(batches: tuple[Values, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        range_of(*batches)


def test_estimate_names_the_tensor_that_was_not_read() -> None:
    with pytest.raises(InputError, match='tensor "y" was not read'):
        estimate_ranges(reading(HAND), MODEL, ["y"], np.zeros((1, 1, 1, 1), np.uint8))


def test_estimate_names_the_closest_method_when_unknown() -> None:
    with pytest.raises(InputError, match='did you mean "entropy"'):
        range_of(HAND, method="entrophy")
