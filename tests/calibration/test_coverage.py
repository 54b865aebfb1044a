"""Coverage of activations: what is kept per image, and the fewest images that cover it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hydistill_edge.calibration.choose import Choice, choose, choose_covering
from hydistill_edge.calibration.coverage import SMALLEST, Activations, join, summarize
from hydistill_edge.calibration.set_cover import Cover, cover, find_outliers
from hydistill_edge.errors import InputError, TransferSetError
from hydistill_edge.targets.base import Images

MODEL = Path("model.onnx")
Values = NDArray[np.float32]
Batches = Iterator[Mapping[str, Values]]


def summary_of(batch: int = 4, channels: int = 4096, **tensors: Values) -> Activations:
    """Summarize tensors as a reader would yield them, `batch` images at a time."""

    def read(model: Path, names: Sequence[str], images: Images) -> Batches:
        for start in range(0, len(images), batch):
            yield {name: tensors[name][start : start + batch] for name in names}

    count = len(next(iter(tensors.values())))
    pixels = np.zeros((count, 1, 1, 1), np.uint8)
    return summarize(read, MODEL, list(tensors), pixels, channels=channels)


def images_peaking_at(*highs: float) -> Values:
    """One image per peak, shape (N, 1, 1, 8): values from 0 to the peak."""
    ramp = np.linspace(0, 1, 8, dtype=np.float32)
    return np.array(highs, np.float32)[:, None, None, None] * ramp


def normal(*shape: int, seed: int = 0) -> Values:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- what is kept -------------------------------------------------------------------------------


def test_summary_holds_extremes_per_image_and_channel() -> None:
    values = np.array([[[[1, -2]], [[0, 5]]], [[[3, 3]], [[-1, -4]]]], np.float32)

    (tensor,) = summary_of(x=values).tensors

    assert tensor.low.tolist() == [[-2, 0], [3, -4]]
    assert tensor.high.tolist() == [[1, 5], [3, -1]]
    assert tensor.peaks.tolist() == [5, 4]
    assert tensor.range == (-4, 5)


def test_summary_describes_tensors_with_most_channels_as_a_whole_when_they_are_too_many() -> None:
    activations = summary_of(channels=10, few=normal(3, 4, 2, 2), many=normal(3, 8, 2, 2))

    assert [tensor.low.shape for tensor in activations.tensors] == [(3, 4), (3, 1)]


@pytest.mark.parametrize(
    ("shape", "units"),
    [((3, 5), 5), ((3, 7, 5), 5), ((3, 5, 2, 2), 5), ((3,), 1)],
    ids=["features", "tokens", "maps", "scalars"],
)
def test_summary_knows_the_channels_of_a_tensor(shape: tuple[int, ...], units: int) -> None:
    (tensor,) = summary_of(x=normal(*shape)).tensors

    assert tensor.low.shape == (3, units)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.3, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("kind", ["normal", "relu", "skewed"])
def test_quantile_is_that_of_all_values_to_a_few_percent(share: float, kind: str) -> None:
    drawn = normal(64, 3, 8, 8)
    values = {"normal": drawn, "relu": np.maximum(drawn, 0), "skewed": np.exp(drawn)}[kind]

    (tensor,) = summary_of(x=values).tensors

    expected = float(np.quantile(values, share))
    assert tensor.quantile(share) == pytest.approx(expected, rel=0.04, abs=0.01)


def test_share_outside_is_that_of_all_values() -> None:
    values = normal(64, 3, 8, 8)

    (tensor,) = summary_of(x=values).tensors

    assert tensor.outside(-2, 1.5) == pytest.approx(
        np.mean((values < -2) | (values > 1.5)), rel=0.02
    )
    assert tensor.outside(*tensor.range) == 0
    assert tensor.outside(-100, 100) == 0


def test_extremes_are_the_outermost_quantiles() -> None:
    (tensor,) = summary_of(x=normal(8, 2, 4, 4)).tensors

    assert (tensor.quantile(0), tensor.quantile(1)) == tensor.range


def test_values_near_zero_share_a_bucket_with_zero() -> None:
    (tensor,) = summary_of(x=np.array([[0.0, -0.0, SMALLEST / 2, 1e-38]], np.float32)).tensors

    assert tensor.shares.shape == (1, 1)
    assert tensor.quantile(0.5) == pytest.approx(0, abs=SMALLEST)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7), st.integers(0, 1000), st.floats(-30, 30))
def test_summary_depends_neither_on_batches_nor_on_the_order(
    batch: int, seed: int, octave: float
) -> None:
    values = normal(9, 2, 3, 3, seed=seed) * np.float32(2**octave)
    order = np.random.default_rng(seed).permutation(9)

    (whole,) = summary_of(x=values).tensors
    (other,) = summary_of(batch=batch, x=values[order]).take(np.argsort(order)).tensors
    (parts,) = join([summary_of(x=values[:4]), summary_of(x=values[4:])]).tensors

    for tensor in (other, parts):
        assert np.array_equal(whole.low, tensor.low)
        assert np.array_equal(whole.high, tensor.high)
        assert [whole.quantile(q) for q in (0.01, 0.6)] == [tensor.quantile(q) for q in (0.01, 0.6)]


def test_summary_is_small_when_images_are_many() -> None:
    activations = summary_of(batch=64, x=np.maximum(normal(512, 16, 8, 8), 0))

    assert activations.nbytes / 512 < 16 * 8 + 2 * 200


@dataclass(frozen=True)
class Unreadable:
    """What a reader yields that cannot be summarized."""

    id: str
    batches: tuple[Mapping[str, Values], ...]
    message: str


UNREADABLE = [
    Unreadable("another name", ({"y": normal(2, 3)},), 'tensor "x" was not read'),
    Unreadable("too few images", ({"x": normal(1, 3)},), "1 images were read .* expected 2"),
    Unreadable("too many images", ({"x": normal(3, 3)},), "3 rows in a batch of 3 images"),
    Unreadable("NaN", ({"x": np.array([[1], [np.nan]], np.float32)},), "not finite for image 1"),
    Unreadable("infinity", ({"x": np.array([[np.inf], [0]], np.float32)},), "for image 0"),
]


@pytest.mark.parametrize("case", UNREADABLE, ids=lambda case: case.id)
def test_summary_is_refused_when_a_tensor_cannot_be_used(case: Unreadable) -> None:
    with pytest.raises(InputError, match=case.message):
        summarize(lambda *_: iter(case.batches), MODEL, ["x"], np.zeros((2, 1, 1, 1), np.uint8))


def test_summary_is_refused_when_there_is_nothing_to_read() -> None:
    with pytest.raises(InputError, match="0 tensors and 2 images"):
        summarize(lambda *_: iter(()), MODEL, [], np.zeros((2, 1, 1, 1), np.uint8))
    with pytest.raises(InputError, match="cannot be joined"):
        join([summary_of(x=normal(2, 3)), summary_of(y=normal(2, 3))])


# --- outliers -----------------------------------------------------------------------------------


def test_outlier_is_found_when_one_image_peaks_far_over_the_others() -> None:
    values = images_peaking_at(*np.linspace(1, 2, 40))
    values[7] *= 50

    (outlier,) = find_outliers(summary_of(x=values), np.arange(40) % 4)

    assert (outlier.image, outlier.tensor) == (7, "x")
    assert "times what 95% of the images stay under" in outlier.why


@dataclass(frozen=True)
class Usual:
    """Peaks and classes of images among which there is no outlier."""

    id: str
    peaks: NDArray[np.float64]
    labels: NDArray[np.int64]


EVEN = np.arange(100) % 2
USUAL = [
    Usual("one in ten is strong", np.where(np.arange(100) % 10 == 0, 30.0, 1.0), EVEN),
    Usual(
        "a rare class is strong", np.array([1.0] * 192 + [90.0] * 8), np.array([0] * 192 + [1] * 8)
    ),
    Usual("a tensor that is nearly always zero", np.array([0.0] * 99 + [5.0]), EVEN),
    Usual("too few to judge", np.array([1.0, 1.0, 90.0]), np.zeros(3, int)),
    Usual("ten times the others", np.array([1.0] * 99 + [10.0]), EVEN),
]


@pytest.mark.parametrize("case", USUAL, ids=lambda case: case.id)
def test_no_outlier_is_found_when_it_is_usual(case: Usual) -> None:
    activations = summary_of(x=images_peaking_at(*case.peaks))

    assert find_outliers(activations, case.labels) == ()


# --- set cover ----------------------------------------------------------------------------------


def test_cover_takes_the_tail_first_and_says_so() -> None:
    values = images_peaking_at(*range(1, 101))

    found = cover(summary_of(x=values), np.zeros(100, int), count=100)

    assert found.complete
    assert len(found.picks) == 4  # one for each bin of the peaks
    tails = [pick.tails for pick in found.picks]
    assert {"x": ("high",)} in tails
    assert any("high tail of x" in pick.why for pick in found.picks)


def least_cover(activations: Activations, labels: NDArray[np.int64]) -> int:
    """The size of the smallest cover, by trying all of them."""
    everything = cover(activations, labels, count=len(activations))
    rows = range(len(activations))
    for size in rows:
        for subset in itertools.combinations(rows, size):
            others = [row for row in rows if row not in subset]
            # Bins are cut over all images, so the others are taken away from the labels instead.
            if covers(activations, subset, others, everything):
                return size
    return len(activations)


def covers(
    activations: Activations, subset: Sequence[int], others: Sequence[int], whole: Cover
) -> bool:
    seen: dict[str, set[tuple[str, int, int]]] = {name: set() for name in whole.covered}
    asked: dict[str, set[tuple[str, int, int]]] = {name: set() for name in whole.covered}
    for tensor in activations.tensors:
        for side, values in (("low", -tensor.low), ("high", tensor.high)):
            for unit in range(values.shape[1]):
                ranked = np.sort(values[:, unit])
                edges = [ranked[int(s * (len(ranked) - 1))] for s in (0.5, 0.9, 0.98)]
                bins = [sum(v > edge for edge in edges) for v in values[:, unit]]
                asked[tensor.name] |= {(side, unit, b) for b in bins}
                seen[tensor.name] |= {(side, unit, bins[row]) for row in subset}
    return seen == asked


@pytest.mark.parametrize("seed", range(4))
def test_cover_is_near_the_smallest_when_all_subsets_are_tried(seed: int) -> None:
    # Every value is an extreme, so that value bins ask nothing beyond the bins of the peaks.
    values = np.random.default_rng(seed).integers(1, 5, (10, 2, 1, 1)).astype(np.float32)
    activations = summary_of(x=values)
    labels = np.zeros(10, int)

    found = cover(activations, labels, count=10)

    chosen = found.images.tolist()
    assert covers(activations, chosen, [], found)
    assert len(chosen) <= least_cover(activations, labels) + 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 3))
def test_cover_is_complete_and_balanced_whatever_the_activations(
    seed: int, classes: int, times: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, 60)
    activations = summary_of(a=normal(60, 3, 2, 2, seed=seed), b=normal(60, 5, seed=seed + 1))

    found = cover(activations, labels, count=60, times=times)

    assert found.complete
    assert all(covered == bins for covered, bins in found.covered.values())
    taken = np.bincount(labels[found.images], minlength=classes)
    there = np.bincount(labels, minlength=classes)
    assert all(n >= min(taken.max() - 1, all_) for n, all_ in zip(taken, there, strict=True))
    assert sum(sum(pick.bins.values()) for pick in found.picks) == sum(
        bins for _, bins in found.covered.values()
    )


def test_cover_grows_when_each_bin_is_to_have_more_images() -> None:
    activations = summary_of(x=normal(80, 4, 2, 2))
    labels = np.zeros(80, int)

    sizes = [len(cover(activations, labels, count=80, times=t).picks) for t in (1, 2, 3)]

    assert sizes[0] < sizes[1] < sizes[2] < 80


def test_cover_stops_and_says_so_when_the_count_is_reached() -> None:
    found = cover(summary_of(x=normal(80, 8, 2, 2)), np.zeros(80, int), count=3)

    assert len(found.picks) == 3
    assert not found.complete
    assert found.covered["x"][0] < found.covered["x"][1]


def test_cover_is_one_image_of_each_class_when_all_are_alike() -> None:
    values = np.ones((12, 2, 3, 3), np.float32)

    found = cover(summary_of(x=values), np.arange(12) % 3, count=12)

    assert found.complete
    assert len(found.picks) == 3
    assert {pick.why for pick in found.picks} == {"taken to balance the classes"}


def test_cover_weighs_tensors_alike_when_one_has_more_channels() -> None:
    rng = np.random.default_rng(0)
    wide = rng.uniform(1, 2, (40, 64, 1, 1)).astype(np.float32)
    thin = rng.uniform(1, 2, (40, 1, 1, 1)).astype(np.float32)

    found = cover(summary_of(wide=wide, thin=thin), np.zeros(40, int), count=7)

    covered, bins = found.covered["thin"]
    assert covered == bins
    assert not found.complete


# --- the choice ---------------------------------------------------------------------------------

CLASSES = ("a", "b", "c")


def pixels(count: int, seed: int = 0) -> Images:
    return np.random.default_rng(seed).integers(0, 200, (count, 4, 4, 1), dtype=np.uint8)


def hashes_of(images: Images) -> NDArray[np.uint8]:
    rows = b"".join(hashlib.sha256(image.tobytes()).digest() for image in images)
    return np.frombuffer(rows, np.uint8).reshape(len(images), 32)


def read_edges(model: Path, names: Sequence[str], images: Images) -> Batches:
    """A network of one layer: differences along both axes, through a ReLU."""
    floats = images.astype(np.float32)[..., 0] / 64
    maps = [floats[:, 1:, 1:] - floats[:, :-1, 1:], floats[:, 1:, 1:] - floats[:, 1:, :-1]]
    for start in range(0, len(images), 8):
        part = slice(start, start + 8)
        yield {"edges": np.maximum(np.stack(maps, axis=1), 0)[part]}


def covering(images: Images, labels: NDArray[np.int64], **options: Any) -> Choice:
    fields: dict[str, Any] = {
        "images": lambda rows: images[rows],
        "hashes": hashes_of(images),
        "pseudo_labels": labels,
        "ids": [f"image-{row}" for row in range(len(images))],
        "classes": CLASSES,
        "reader": read_edges,
        "model": MODEL,
        "tensors": ["edges"],
    }
    return choose_covering(**{**fields, **options})


def test_covering_choice_is_small_balanced_and_explained() -> None:
    choice = covering(pixels(300), np.arange(300) % 3)

    assert len(choice.rows) < 30
    assert max(choice.per_class.values()) - min(choice.per_class.values()) <= 1
    assert choice.coverage is not None
    assert choice.coverage.complete
    assert {name for name, _ in choice.coverage.picks} == set(choice.ids)
    assert "tail of edges" in choice.coverage.picks[0][1]
    (layer,) = choice.coverage.layers
    assert layer["covered"] == layer["bins"]
    assert layer["high"] >= 0.9 * layer["candidates_high"]
    assert choice.to_dict()["coverage"]["candidates"] == 300


def test_covering_choice_is_of_the_same_images_when_they_are_stored_in_another_order() -> None:
    images, labels = pixels(60), np.arange(60) % 3
    order = np.random.default_rng(1).permutation(60)

    first = covering(images, labels, seed=3)
    second = covering(images[order], labels[order], seed=3)

    assert set(first.rows) == set(order[second.rows])


def test_covering_choice_is_the_same_when_images_are_stored_twice() -> None:
    images, labels = pixels(60), np.arange(60) % 3

    once = covering(images, labels)
    twice = covering(np.concatenate([images, images]), np.concatenate([labels, labels]))

    assert np.array_equal(once.rows, twice.rows)


def test_covering_choice_leaves_an_outlier_out_and_says_so() -> None:
    images = pixels(60) // 20
    images[5, 0, 0], images[5, 1, 1] = 0, 250

    choice = covering(images, np.arange(60) % 3)

    assert 5 not in choice.rows
    assert choice.coverage is not None
    assert [name for name, _ in choice.coverage.outliers] == ["image-5"]
    assert choice.coverage.layers[0]["high"] < 1
    assert "left out as outliers: 1 (image-5 peaks at" in choice.reason


def test_covering_choice_stays_inside_the_rows_handed_in() -> None:
    images, among = pixels(90), np.arange(20, 70)

    choice = covering(
        images, np.arange(90) % 3, among=among, exclude=hashes_of(images[20:40]), count=12
    )

    assert set(choice.rows) <= set(range(40, 70))
    assert len(choice.rows) <= 12


def test_covering_choice_looks_at_a_balanced_draw_when_there_are_too_many() -> None:
    choice = covering(pixels(200), np.arange(200) % 3, candidates=50)

    assert choice.coverage is not None
    assert choice.coverage.candidates == 50
    assert "the fewest found among 50, balanced" in choice.reason


def test_covering_choice_says_what_is_missing_when_the_count_is_too_small() -> None:
    choice = covering(pixels(200), np.arange(200) % 3, count=3)

    assert choice.coverage is not None
    assert not choice.coverage.complete
    assert "more than 3 images would be needed for the rest" in choice.reason


@pytest.mark.parametrize("missing", [{"reader": None}, {"model": None}, {"tensors": []}])
def test_covering_choice_is_a_drawn_one_when_nothing_can_be_read(missing: dict[str, Any]) -> None:
    images, labels = pixels(40), np.arange(40) % 3

    choice = covering(images, labels, count=9, **missing)

    drawn = choose(
        images=lambda rows: images[rows],
        hashes=hashes_of(images),
        pseudo_labels=labels,
        ids=[f"image-{row}" for row in range(40)],
        classes=CLASSES,
        count=9,
    )
    assert np.array_equal(choice.rows, drawn.rows)
    assert choice.coverage is None
    assert "activations were not looked at" in choice.reason


def test_covering_choice_is_refused_when_nothing_is_left() -> None:
    images = pixels(3)

    with pytest.raises(TransferSetError, match="no image to calibrate with"):
        covering(images, np.zeros(3, int), exclude=hashes_of(images))
