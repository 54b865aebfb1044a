"""What every layer saw of every image: extremes and histograms, in memory that stays bounded.

The float graph runs once over the images. What is kept of a tensor is, per image, the least and
the greatest value (of every channel, where the channels of all tensors are few enough) and a
histogram whose buckets are fixed beforehand: eight per octave of the value, so that one pass is
enough, and neither the order of the images nor an outlier among them changes what is kept of
another. Quantiles of any subset of the images are read from it afterwards.

How the graph is run is the caller's business: an `ActivationReader` is handed in.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hydistill_edge.errors import InputError
from hydistill_edge.targets.base import ActivationReader, Images

Values = NDArray[np.float32]

MOST_CHANNELS = 4096
"""Channels that are described one by one, all tensors together: 32 KiB per image."""

# A bucket is the upper twelve bits of a float32: its sign, its exponent and three bits of its
# mantissa. Magnitudes under `SMALLEST` are one bucket with zero: a 256th of any range that matters.
_SHIFT, _PER_OCTAVE, _RAW = 20, 8, 4096
SMALLEST = 2.0**-20
_SKIPPED = (127 - 20) * _PER_OCTAVE  # raw buckets of one sign under SMALLEST
_SIDE = 255 * _PER_OCTAVE - _SKIPPED  # buckets of one sign; above them are infinity and NaN
_ZERO = _SIDE  # place of zero's bucket on the axis that goes from the least to the greatest value


@dataclass(frozen=True, slots=True, eq=False)
class TensorActivations:
    """What one tensor held for each of N images.

    Attributes:
        name: the tensor's name in the graph.
        low: least value per image and unit, shape (N, U); a unit is a channel, or the whole tensor
            (U = 1).
        high: greatest value, shape (N, U).
        shares: share of the image's values in each bucket, shape (N, B) float16; zero means none.
        first: place of the first of the B buckets on the axis of all buckets.
    """

    name: str
    low: Values
    high: Values
    shares: NDArray[np.float16]
    first: int

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.low)

    @property
    def range(self) -> tuple[float, float]:
        """Least and greatest value of all images."""
        return float(self.low.min()), float(self.high.max())

    @property
    def peaks(self) -> Values:
        """Greatest magnitude per image, shape (N,)."""
        peaks: Values = np.maximum(np.abs(self.low).max(axis=1), np.abs(self.high).max(axis=1))
        return peaks

    @property
    def edges(self) -> NDArray[np.float64]:
        """Edges of the buckets, rising, shape (B + 1,)."""
        return _edges(self.first + np.arange(self.shares.shape[1] + 1))

    def cumulative(self) -> NDArray[np.float64]:
        """Return the share of all values under each edge, every image weighing the same: (B + 1,).

        Sums of float16 are exact in float64: the order of the images does not matter.
        """
        pooled = self.shares.sum(axis=0, dtype=np.float64)
        return np.concatenate([[0.0], np.cumsum(pooled) / pooled.sum()])

    def quantile(self, share: float) -> float:
        """Return the value below which `share` of all values lie.

        Good to a few percent of the value: inside a bucket values are taken as spread evenly.
        """
        below, edges = self.cumulative(), self.edges
        # The last edge with no more below it: empty buckets are cut off a tail, not kept.
        if share <= 0.5:
            left = int(np.searchsorted(below, share, side="right")) - 1
        else:
            left = int(np.searchsorted(below, share, side="left")) - 1
        left = min(max(left, 0), len(edges) - 2)
        found = float(np.interp(share, below[left : left + 2], edges[left : left + 2]))
        low, high = self.range
        return min(max(found, low), high)

    def outside(self, low: float, high: float) -> float:
        """Return the share of all values under `low` or over `high`."""
        least, greatest = self.range
        below, edges = self.cumulative(), self.edges
        under = float(np.interp(low, edges, below)) if low > least else 0.0
        over = 1.0 - float(np.interp(high, edges, below)) if high < greatest else 0.0
        return under + over

    def take(self, rows: ArrayLike) -> TensorActivations:
        """Return what it held for some of the images."""
        chosen = np.asarray(rows)
        return TensorActivations(
            self.name, self.low[chosen], self.high[chosen], self.shares[chosen], self.first
        )


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """What every named tensor held for each of N images; `tensors` in the order asked for."""

    tensors: tuple[TensorActivations, ...]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.tensors[0]) if self.tensors else 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors."""
        return tuple(tensor.name for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = ((tensor.low, tensor.high, tensor.shares) for tensor in self.tensors)
        return sum(array.nbytes for triple in arrays for array in triple)

    def take(self, rows: ArrayLike) -> Activations:
        """Return the summaries of some of the images, in that order."""
        return Activations(tuple(tensor.take(rows) for tensor in self.tensors))


def summarize(
    reader: ActivationReader,
    model: Path,
    tensors: Sequence[str],
    images: Images,
    *,
    channels: int = MOST_CHANNELS,
) -> Activations:
    """Run a float model over the images once and keep what its tensors held for each of them.

    Memory: 8 bytes per image and channel that is described by itself, and 2 bytes per image and
    bucket (about 200 of them for a tensor behind a ReLU).

    Args:
        reader: runs the model and yields the tensors batch by batch, images along axis 0.
        model: ONNX file in float.
        tensors: names of the tensors, e.g. the inputs of Conv, Gemm and MatMul.
        images: shape (N, H, W, C) uint8.
        channels: channels that may be described one by one, all tensors together. Where there are
            more, the tensors with the most channels are described as a whole.

    Raises:
        InputError: no tensor, no image, a tensor that the reader does not yield for every image,
            or a value that is not finite.
    """
    names = list(dict.fromkeys(tensors))
    if not names or not len(images):
        raise InputError(
            f"{len(names)} tensors and {len(images)} images were handed over to be summarized; "
            "expected at least one of each"
        )
    recorders: dict[str, _Recorder] = {}
    done = 0
    for batch in reader(model, names, images):
        for name in names:
            if name not in batch:
                raise InputError(_not_read(name, batch))
        if not recorders:
            whole = _described_as_a_whole({name: batch[name] for name in names}, channels)
            recorders = {name: _Recorder(name, len(images), name not in whole) for name in names}
        size = len(batch[names[0]])
        for name in names:
            if len(batch[name]) != size or done + size > len(images):
                raise InputError(
                    f'tensor "{name}" has {len(batch[name])} rows in a batch of {size} images, '
                    f"after {done} of {len(images)}; expected one row per image along axis 0"
                )
            recorders[name].add(np.asarray(batch[name], np.float32), done)
        done += size
    if done != len(images):
        raise InputError(
            f"activations of {done} images were read from {model.name}; expected {len(images)}. "
            "Hand over a reader that yields every image once"
        )
    return Activations(tuple(recorders[name].finished() for name in names))


def join(parts: Sequence[Activations]) -> Activations:
    """Return the summaries of several sets of images of the same tensors as one, in order.

    Raises:
        InputError: the parts do not describe the same tensors and channels.
    """
    shapes = [[(t.name, t.low.shape[1]) for t in part.tensors] for part in parts]
    if not parts or any(shape != shapes[0] for shape in shapes):
        raise InputError(
            f"{len(parts)} summaries cannot be joined; expected at least one, all of the same "
            "tensors with the same channels"
        )
    return Activations(
        tuple(_joined([part.tensors[place] for part in parts]) for place in range(len(shapes[0])))
    )


def _joined(parts: list[TensorActivations]) -> TensorActivations:
    first = min(part.first for part in parts)
    last = max(part.first + part.shares.shape[1] for part in parts)
    shares = np.zeros((sum(map(len, parts)), last - first), np.float16)
    row = 0
    for part in parts:
        start = part.first - first
        shares[row : row + len(part), start : start + part.shares.shape[1]] = part.shares
        row += len(part)
    return TensorActivations(
        parts[0].name,
        np.concatenate([part.low for part in parts]),
        np.concatenate([part.high for part in parts]),
        shares,
        first,
    )


class _Recorder:
    """Fills the summary of one tensor, whose window of buckets grows with what it sees."""

    def __init__(self, name: str, images: int, by_channel: bool) -> None:
        self.name = name
        self._by_channel = by_channel
        self._images = images
        self._extremes: list[Values] = []  # low and high, shape (images, units)
        self._shares = np.zeros((images, 0), np.float16)
        self._first = _ZERO

    def add(self, values: Values, row: int) -> None:
        """Record the values of images `row`, `row + 1`, ...; shape (n, ...)."""
        by_unit = _by_unit(values, self._by_channel)
        low, high = by_unit.min(axis=2), by_unit.max(axis=2)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            bad = row + int(np.argmin(np.isfinite(low + high).all(axis=1)))
            raise InputError(
                f'tensor "{self.name}" is not finite for image {bad}; expected finite values. '
                "Check the model in float before quantizing it"
            )
        if not self._extremes:
            self._extremes = [np.empty((self._images, low.shape[1]), np.float32) for _ in "lh"]
        for kept, found in zip(self._extremes, (low, high), strict=True):
            kept[row : row + len(values)] = found
        first, shares = _bucket_shares(values)
        self._widen(first, first + shares.shape[1])
        start = first - self._first
        self._shares[row : row + len(values), start : start + shares.shape[1]] = shares

    def finished(self) -> TensorActivations:
        low, high = self._extremes
        return TensorActivations(self.name, low, high, self._shares, self._first)

    def _widen(self, first: int, last: int) -> None:
        before = self._shares.shape[1]
        start = min(first, self._first)
        stop = max(last, self._first + before)
        if stop - start > before:
            wider = np.zeros((self._images, stop - start), np.float16)
            wider[:, self._first - start : self._first - start + before] = self._shares
            self._shares, self._first = wider, start


def _by_unit(values: Values, by_channel: bool) -> Values:
    """Return a view or copy of shape (n, units, values of a unit)."""
    if not by_channel or values.ndim < 2:
        return values.reshape(len(values), 1, -1)
    if values.ndim == 3:  # tokens of a transformer: the channels come last
        values = values.swapaxes(1, 2)
    return values.reshape(*values.shape[:2], -1)


def _described_as_a_whole(batch: Mapping[str, Values], channels: int) -> set[str]:
    counts = {name: _by_unit(values, True).shape[1] for name, values in batch.items()}
    whole: set[str] = set()
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        if sum(counts.values()) <= channels:
            break
        whole.add(name)
        counts[name] = 1
    return whole


def _bucket_shares(values: Values) -> tuple[int, NDArray[np.float16]]:
    """Return the place of the first filled bucket, and shares of shape (n, filled buckets)."""
    n = len(values)
    raw = (np.ascontiguousarray(values).view(np.uint32) >> _SHIFT).reshape(n, -1).astype(np.int64)
    raw += np.arange(n)[:, None] * _RAW
    counts = np.bincount(raw.ravel(), minlength=n * _RAW).reshape(n, 2, _RAW // 2)
    kept = counts[:, :, _SKIPPED : _SKIPPED + _SIDE]
    axis = np.concatenate(
        [kept[:, 1, ::-1], counts[:, :, :_SKIPPED].sum(axis=(1, 2))[:, None], kept[:, 0]], axis=1
    )
    filled = np.flatnonzero(axis.any(axis=0))
    first, last = int(filled[0]), int(filled[-1]) + 1
    shares = axis[:, first:last] / (raw.shape[1])
    # One value of 20 million would round to none in float16; it is there, and a bucket says so.
    least = float(np.finfo(np.float16).smallest_subnormal)
    return first, np.where(shares > 0, np.maximum(shares, least), 0).astype(np.float16)


def _edges(places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the lower edges of the buckets at these places of the axis; rising."""
    steps = np.where(places > _ZERO, places - _ZERO, _ZERO + 1 - places)
    bits = ((steps - 1 + _SKIPPED) << _SHIFT).astype(np.uint32)
    magnitudes = np.minimum(bits.view(np.float32), np.finfo(np.float32).max).astype(np.float64)
    edges: NDArray[np.float64] = np.where(places > _ZERO, magnitudes, -magnitudes)
    return edges


def _not_read(name: str, batch: Mapping[str, Values]) -> str:
    close = difflib.get_close_matches(name, list(batch), n=1)
    hint = f' (the closest is "{close[0]}")' if close else ""
    return (
        f'tensor "{name}" was not read{hint}; expected every named tensor in each batch. Check '
        "that the model has it as a float tensor"
    )
